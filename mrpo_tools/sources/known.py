"""Data sets that have a name of their own, where they are and how the papers split them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Known:
    """A data set on the Hugging Face hub.

    Attributes:
        hub_id: owner/name; the revision is the newest unless `NAME@REVISION` is given.
        about: what its scores mean, and who used it.
        test_size: the share of prompts held out where the data has no test split of its own.
        train_groups: so many groups train and all others test; data with no more than that goes
            by `test_size`.
        config: which of the hub data set's configurations.
    """

    hub_id: str
    about: str
    test_size: float = 0.0
    train_groups: int | None = None
    config: str | None = None


KNOWN = {
    "comparison-gpt4": Known(
        "wangrongsheng/comparison_gpt4_data_en",
        "pairs without scores; S1 of MRPO (364 train, 3,276 test)",
        test_size=0.9,
        train_groups=364,
    ),
    "neural-dpo": Known(
        "NeuralNovel/Neural-DPO",
        "pairs without scores; S2 of MRPO (502 train, 502 test)",
        test_size=0.5,
        train_groups=502,
    ),
    "distilabel-math": Known(
        "argilla/distilabel-math-preference-dpo",
        "pairs with ratings of a judge; S3 of MRPO (2,178 train, 242 test)",
        test_size=0.1,
        train_groups=2178,
    ),
    "ultrafeedback": Known(
        "openbmb/UltraFeedback", "4 responses a prompt, each judged 1-10 and by four aspects"
    ),
    "ultrafeedback-binarized": Known(
        "HuggingFaceH4/ultrafeedback_binarized",
        "the best of four and one other, judged 1-10 (MRPO, Table 7)",
    ),
    "helpsteer": Known("nvidia/HelpSteer", "1-4 responses a prompt, five attributes of 0-4"),
    "helpsteer2": Known("nvidia/HelpSteer2", "2 responses a prompt, five attributes of 0-4"),
    "helpsteer-binarized": Known(
        "sablo/HelpSteer_binarized",
        "best and worst response by the mean of helpfulness and correctness (MRPO, Table 7)",
    ),
    "helpsteer3": Known(
        "nvidia/HelpSteer3",
        "pairs; the score is half the overall preference, -1.5 to 1.5",
        config="preference",
    ),
    "nectar": Known("berkeley-nest/Nectar", "7 responses a prompt; the score is minus the rank"),
    "nectar-binarized": Known(
        "HongchengGao/Nectar_binarized",
        "pairs of Nectar (MRPO, Table 7: 90 % train)",
        test_size=0.1,
    ),
    "hh-rlhf": Known("Anthropic/hh-rlhf", "pairs of transcripts without scores"),
    "orca-dpo": Known("Intel/orca_dpo_pairs", "pairs without scores, with system messages"),
}
