"""The claims from the command line, with the work itself replaced."""

import jax
import pytest

from vidlang.serve.claims import run
from vidlang.serve.claims.recipes import Scale


@pytest.fixture
def asked(monkeypatch):
    """What the launcher asks to be run; nothing is."""
    found = []

    def never_run(workdir, **options):
        found.append((workdir, options))
        return {"claims": [{"number": 2, "verdict": "not held", "statement": "Masking costs little."}]}

    monkeypatch.setattr(run, "run_claims", never_run)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", jax.config.jax_compilation_cache_dir or "")
    return found


def test_a_claim_that_does_not_hold_is_a_result_and_no_error(launch, asked, tmp_path):
    done = launch("launch.claims", f"--workdir={tmp_path}", f"--data={tmp_path}/data", "--only=masking")
    assert done.code == 0, done.err
    assert "2  not held   Masking costs little." in done.out and f"{tmp_path}/report.html" in done.out
    scale = Scale(root=f"{tmp_path}/data")
    assert asked == [(str(tmp_path), {"scale": scale, "seeds": 3, "only": "masking"})]


def test_quick_is_shorter_and_of_one_seed_unless_more_are_asked_for(launch, asked, tmp_path):
    for flags, seeds in (((), 1), (("--seeds=2",), 2)):
        assert launch("launch.claims", f"--workdir={tmp_path}", "--quick", *flags).code == 0
        _, options = asked.pop()
        assert options["seeds"] == seeds and options["scale"].quick and options["scale"].steps < Scale().steps


def test_a_mistake_is_a_sentence(launch, tmp_path):
    for flags, message in ((("--only=maskin9",), "matches no claim"), (("--seeds=0",), "--seeds must be at least 1")):
        done = launch("launch.claims", f"--workdir={tmp_path / 'none'}", *flags)
        assert done.code == 2 and message in done.err and not (tmp_path / "none").exists()
