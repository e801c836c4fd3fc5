"""The experiments: one function's worth of branches for each question the paper leaves."""

from __future__ import annotations

from typing import TYPE_CHECKING

from training.experiments.plan import Branch, Experiment

if TYPE_CHECKING:
    from training.experiments.plan import Size
    from training.loss.official import Defect

BASE = Branch("base", "plain denoising", "mask", units=3.0)
"""What every branch starts from: a model that sees, and has never met a wrong token."""
STAGE1 = Branch("stage1", "Stage I", "stage1", after="base")


def _noisy(right: int) -> Branch:
    """An expert that is right in this many of a hundred corrections."""
    missing = (1 - right / 100) / 2
    return Branch(
        f"expert-{right}",
        f"{right} % right",
        "stage2",
        after="stage1",
        overrides={"expert": {"kind": "noisy", "dropped": missing, "wrong": missing}},
    )


def _rounds(count: int) -> Branch:
    """`count` rounds, together as long as one."""
    label = "1 round" if count == 1 else f"{count} rounds"
    return Branch(f"rounds-{count}", label, "stage2", 1 / count, "stage1", {"rounds": count})


def _defect(name: Defect, label: str) -> Branch:
    """Mended losses and samples but for one thing."""
    return Branch(
        name.replace("_", "-"),
        f"mended but for: {label}",
        "stage1",
        after="base",
        overrides={"loss": "default", "defects": [name]},
    )


def _corruption(label: str, low: float, high: float, share: float) -> Branch:
    return Branch(
        f"corruption-{label}",
        label.replace("-", " to ") + " %",
        "stage1",
        after="base",
        overrides={"phase": {"replace": share, "replace_low": low, "replace_high": high}},
    )


EXPERIMENTS = {
    experiment.name: experiment
    for experiment in (
        Experiment(
            "tokens-per-step",
            "Does refining, taught in two stages, keep quality when many tokens are decoded a "
            "step?",
            (
                BASE,
                STAGE1,
                Branch("mask-only", "mask-only", "mask", 2.0, "base"),
                Branch("stage1-only", "Stage I", "stage1", 1.0, "stage1"),
                Branch("stage2", "Stage I and II", "stage2", 1.0, "stage1"),
            ),
            ("mask-only", "stage1-only", "stage2"),
            (1, 2, 4, 8),
            (False, True),
        ),
        Experiment(
            "without-stage1",
            "Does Stage II need Stage I before it?",
            (
                BASE,
                STAGE1,
                Branch("both", "Stage I, then II", "stage2", 1.0, "stage1"),
                Branch("stage2-alone", "Stage II alone", "stage2", 2.0, "base"),
                Branch("stage1-alone", "Stage I alone", "stage1", 1.0, "stage1"),
            ),
            ("both", "stage2-alone", "stage1-alone"),
        ),
        Experiment(
            "rounds",
            "Is more than one round of drafting and correcting worth it?",
            (BASE, STAGE1, *map(_rounds, (1, 2, 3))),
            ("rounds-1", "rounds-2", "rounds-3"),
        ),
        Experiment(
            "expert",
            "How good must the expert be?",
            (
                BASE,
                STAGE1,
                Branch("oracle", "always right", "stage2", 1.0, "stage1"),
                *(_noisy(right) for right in (75, 50, 25)),
                Branch("no-expert", "no expert: more Stage I", "stage1", 1.0, "stage1"),
            ),
            ("oracle", "expert-75", "expert-50", "expert-25", "no-expert"),
        ),
        Experiment(
            "corruption-rate",
            "How many tokens should Stage I replace?",
            (
                BASE,
                _corruption("0", 0.0, 0.0, 0.0),
                _corruption("1-5", 0.01, 0.05, 0.45),
                _corruption("3-12", 0.03, 0.12, 0.45),
                _corruption("10-30", 0.10, 0.30, 0.45),
            ),
            ("corruption-0", "corruption-1-5", "corruption-3-12", "corruption-10-30"),
        ),
        Experiment(
            "compat",
            "What do the mended losses gain over the official ones, and each change by itself?",
            (
                BASE,
                Branch("official", "official losses", "stage1", 1.0, "base", {"loss": "official"}),
                Branch("mended", "mended losses", "stage1", 1.0, "base", {"loss": "default"}),
                _defect("masked_mean", "mean of the masked divided by the rate"),
                _defect("kept_rate", "replaced and clean divided by the rate"),
                _defect("pair_rate", "pairs divided by the rate"),
                _defect("trained_padding", "padding trained"),
                _defect("lost_pairs", "half of the pairs lost"),
                _defect("shifted_flags", "flags of half of the pairs shifted"),
                Branch("scenes", "losses of the recipe", "stage1", 1.0, "base"),
            ),
            (
                "official",
                "mended",
                "masked-mean",
                "kept-rate",
                "pair-rate",
                "trained-padding",
                "lost-pairs",
                "shifted-flags",
                "scenes",
            ),
        ),
        Experiment(
            "prefix-conversion",
            "What does a stale prompt cost a model with full attention, and what does a short "
            "training with prefix attention give back?",
            (
                Branch(
                    "full-base",
                    "full attention",
                    "mask",
                    3.0,
                    overrides={"model": {"prefix_attention": "full"}},
                ),
                Branch("full", "full attention", "stage1", 1.0, "full-base"),
                Branch(
                    "converted",
                    "converted to prefix attention",
                    "stage1",
                    0.25,
                    "full",
                    {"prefix_attention": "prefix"},
                ),
            ),
            ("full", "converted"),
            (4,),
            (True,),
            (1, 2, 4, 8, 16, None),
        ),
    )
}
"""By name."""


def check_names(size: Size) -> None:
    """Raises ValueError if `size` gives or leaves out a branch that no experiment has."""
    known = {branch.name for each in EXPERIMENTS.values() for branch in each.branches}
    for name in (*size.given, *size.left_out):
        if name not in known:
            raise ValueError(f"no experiment has a branch {name!r}; there are {sorted(known)}")
