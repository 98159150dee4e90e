"""LongViViT, step 1 at less memory: EffShortViViT, of which three quarters of the tubelets are masked in training.

    python -m launch.train --config=configs/eff_shortvivit.py --workdir=runs/eff_shortvivit
    python -m launch.train --config=configs/eff_shortvivit.py:tiny --workdir=runs/eff_shortvivit_tiny
    python -m launch.plan --config=configs/eff_shortvivit.py --stages=short --target=cpu --batch_size=8

ShortViViT (configs/shortvivit.py) with the dial mask at 0.75: random tubelets, dropped after positions are added and
before the first layer; evaluations see all. A stage has one mask, so the images beside the videos are masked too; the
paper does not say whether its are.
Pod: vit_l short on v5e:8x16 (docs/scale.md).
Cost: 2 to 3 times less memory than without masks (docs/cost.md), a fifth of the operations of the video tower.
Result: zero-shot R@1 in the paper, ViT-L, text to video / video to text: MSR-VTT 29.9 / 38.3, VATEX 34.4 / 42.7,
YouCook2 20.5 / 20.3, ActivityNet 20.1 / 17.7.
The tiny variant takes 25 s on two cores: the right scene among the first 5 of 32 for 27 % of texts (chance 16 %).
"""

import ml_collections

from configs import parts
from configs.imagevit import SIZES, image_stage, tiny_image_stage
from configs.shortvivit import short_stage, tiny_short_stage

MASKED = {"mask": 0.75}


def get_config(words: str = "") -> ml_collections.ConfigDict:
    """Two stages: image, short. Variants: vit_b (default), vit_l, tiny."""
    chosen = parts.variant(words, SIZES)
    size = parts.one_of(chosen, SIZES)
    stages = [image_stage(size), short_stage(size, dials=MASKED)]
    if "tiny" in chosen:
        stages = [tiny_image_stage(stages[0]), tiny_short_stage(stages[1])]
    return parts.recipe("eff_shortvivit", stages, mesh=parts.mesh(fsdp=4 if chosen == {"vit_l"} else 1))
