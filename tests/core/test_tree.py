import jax.numpy as jnp
import numpy as np
import pytest

from vidlang.core import tree


@pytest.fixture
def params():
    return {
        "video": {"layers": {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}},
        "text": {"kernel": jnp.ones((3, 4))},
    }


def test_path_mask_marks_matches(params):
    mask = tree.path_mask(params, ["^video/", "bias$"])
    assert mask == {"video": {"layers": {"kernel": True, "bias": True}}, "text": {"kernel": False}}
    assert tree.flatten_paths(mask)["text/kernel"] is False


def test_no_patterns_mark_nothing(params):
    assert not any(tree.flatten_paths(tree.path_mask(params, [])).values())


def test_a_rule_that_matches_nothing_is_an_error(params):
    with pytest.raises(ValueError, match=r"freeze: 'vidoe/' matches no parameter.*there are: .*text/kernel"):
        tree.path_mask(params, ["kernel", "vidoe/"], what="freeze")
    with pytest.raises(ValueError, match="not a regular expression"):
        tree.path_mask(params, ["("])


def test_a_text_is_no_list_of_patterns(params):
    with pytest.raises(ValueError, match=r"^freeze: give a list of patterns, as in \['bias'\]"):
        tree.path_mask(params, "bias", what="freeze")


def test_merge_reports_every_leaf(params):
    source = {
        "encoder": {"layers": {"kernel": np.full((2, 3), 7.0), "extra": np.ones(1)}},
        "text": {"kernel": np.ones((4, 3))},
    }
    merged, report = tree.merge(params, source, rules=[("^encoder/", "video/")])
    np.testing.assert_array_equal(merged["video"]["layers"]["kernel"], 7.0)
    np.testing.assert_array_equal(merged["text"]["kernel"], params["text"]["kernel"])
    assert report.loaded == ("video/layers/kernel",)
    assert report.missing == ("video/layers/bias",)
    assert report.unused == ("video/layers/extra",)
    assert report.mismatched == ("text/kernel (3, 4), found (4, 3)",)
    with pytest.raises(ValueError, match="video/layers/extra"):
        report.raise_unless(["bias", "text/"])
    report.raise_unless(["bias", "text/", "extra"])


def test_rules_that_collide_are_an_error(params):
    with pytest.raises(ValueError, match="two parameters the name"):
        tree.merge(params, {"a": np.ones(1), "b": np.ones(1)}, rules=[("^[ab]$", "c")])


def test_table_counts_all(params):
    assert tree.count(params) == 21
    assert "21" in tree.table(params).splitlines()[-1]
