"""Every objective as a row of one table: which number of a response, contrasted how.

Four shapes make all of them. A *score* of each response: the implicit reward u = β(ℓ − r), the
length-normalised v = βℓ/L, the geometric-mean token probability p = exp(ℓ/L), or ℓ itself. A
*contrast*: over pairs, between sets, against a target distribution, over a ranking, or pointwise.
A *pairing or partition* (`contrasts`). A *reference* (`references`), combined beforehand.

Symbols are those of docs/methods.md: ℓ policy log-prob, r reference log-prob (nats, summed), L
response tokens under the policy's tokenizer, s score, δ deviation from the group's mean, Y+ and Y−
the chosen and rejected sets, w and l the winner and loser of a pair. Sources: MRPO (Le et al.
2025), MPO (Gupta et al. 2024), SWEPO (Gupta et al. 2024), MPPO (Xie et al. 2024), and those named
in the table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal

from torch import Tensor

from mrpo_tools.maths import contrasts, losses
from mrpo_tools.maths.losses import REASONS
from mrpo_tools.maths.shapes import fill
from mrpo_tools.maths.terms import Batch, Hyper, Terms

__all__ = [
    "HYPER_PARAMETERS",
    "NAMES",
    "REASONS",
    "TABLE",
    "Batch",
    "Objective",
    "compute",
    "find",
    "rewards",
    "sides",
    "usable",
]


Reward = Literal["u", "u_first", "v", "beta_logp", "logp", "q", "p"]
COMMON: Hyper = MappingProxyType({"partition": "auto", "top_bottom": 2, "seed": None})
"""What every objective takes: who is chosen, and a seed for `best_random` without `Batch.seeds`."""


@dataclass(frozen=True)
class Objective:
    """A row of the table.

    Attributes:
        name: as in `mrpo train --loss NAME`.
        formula: the loss of one group.
        source: paper and equation.
        loss: [B] from the terms.
        usable: [B] bool from the terms.
        defaults: hyper-parameters and their defaults; no others are accepted.
        reward: what `rewards` returns (METHODS §5).
        reference: whether a reference enters.
        scores: whether labels alone are too little.
        batchwise: whether a group's loss depends on the other groups of its batch.
    """

    name: str
    formula: str
    source: str
    loss: Callable[[Terms], Tensor]
    usable: Callable[[Terms], Tensor]
    defaults: Hyper = field(default_factory=dict)
    reward: Reward = "u"
    reference: bool = True
    scores: bool = False
    batchwise: bool = False

    def complete(self, hyper: Hyper) -> dict[str, Any]:
        """The defaults with the given hyper-parameters over them.

        Raises:
            ValueError: a hyper-parameter that this objective does not have.
        """
        known = {**COMMON, **self.defaults}
        unknown = sorted(hyper.keys() - known.keys())
        if unknown:
            raise ValueError(
                f"{self.name} has no hyper-parameter {', '.join(unknown)}; "
                f"it has {', '.join(sorted(known))}"
            )
        return {**known, **hyper}


def _pairwise(
    name: str,
    formula: str,
    source: str,
    score: Callable[[Terms], Tensor],
    reward: Reward = "u",
    reference: bool = True,
    batchwise: bool = False,
    **defaults: Any,
) -> Objective:
    """A row whose loss is the mean of a pair's loss over the group's pairs."""
    hyper = {"beta": 0.1, "pairing": "best_worst", **defaults}
    if reward in ("q", "p", "logp"):
        del hyper["beta"]
    return Objective(
        name,
        formula,
        source,
        losses.over_pairs(score),
        losses.has_pair,
        hyper,
        reward,
        reference,
        batchwise=batchwise,
    )


_SET = {"beta": 0.01}
_DEVIATION = {**_SET, "deviation_scale": 0.1, "signed": False}
_PAIRED = {"beta": 0.1, "pairing": "best_worst"}

_ROWS = (
    _pairwise(
        "dpo",
        "−log σ(u_w − u_l); label smoothing c: −(1−c) log σ(h) − c log σ(−h)",
        "MRPO Eq. 5, MPO Eq. 2",
        losses.dpo,
        label_smoothing=0.0,
    ),
    Objective(
        "multi_dpo",
        "Σ_k α_k · dpo against r̂_k",
        "MRPO Eq. 11",
        losses.multi_dpo,
        losses.has_pair,
        {**_PAIRED, "label_smoothing": 0.0},
        "u_first",
    ),
    Objective(
        "mpo",
        "−log( Σ_{Y+} e^{u_i} / Σ_all e^{u_i} )",
        "MPO Eq. 4-5",
        losses.mpo,
        losses.has_sets,
        _SET,
    ),
    Objective(
        "w_mpo",
        "mpo on u_i + β·a·|δ_i|; signed: u_i + β·a·δ_i",
        "MPO Eq. 6-8, App. C Eq. 13-15",
        losses.w_mpo,
        losses.has_sets,
        _DEVIATION,
    ),
    Objective(
        "swepo",
        "mpo on u_i + β·(a·|δ_i|)^p, p = 0 adds nothing; signed: times sign(δ_i); "
        "weight power: |δ_i|^p multiplies e^{u_i} instead",
        "SWEPO Eq. 5-10, 15-16, 24, App. E",
        losses.swepo,
        losses.has_weighted_sets,
        {**_DEVIATION, "power": 1, "weight": "none"},
    ),
    Objective(
        "mpo_1vsk",
        "mpo with chosen = top1",
        "MPO Table 1, SWEPO-1-vs-k",
        losses.mpo,
        losses.has_sets,
        {**_SET, "partition": "top1"},
    ),
    Objective(
        "mpo_reference_free",
        "−log( Σ_{Y+} e^{v_i−γ} / (Σ_{Y+} e^{v_i−γ} + Σ_{Y−} e^{v_i}) )",
        "MPO Fig. 8",
        losses.mpo_reference_free,
        losses.has_sets,
        {"beta": 2.0, "gamma": 1.0},
        "v",
        False,
    ),
    Objective(
        "infonca",
        "−Σ_i softmax(s/τ)_i · log softmax(u)_i",
        "MPO Eq. 3",
        losses.infonca,
        losses.has_two,
        {**_SET, "tau": 1.0},
        scores=True,
    ),
    Objective(
        "nca",
        "−Σ_i [ softmax(s/τ)_i log σ(u_i) + (1/N) log σ(−u_i) ]",
        "SWEPO App. D; Chen et al. 2024",
        losses.nca,
        losses.has_two,
        {**_SET, "tau": 1.0},
        scores=True,
    ),
    Objective(
        "plackett_luce",
        "Σ_i [ logsumexp over {j: s_j ≤ s_i} of u_j − u_i ]",
        "MPO §3.2",
        lambda t: losses.ranking(t, t.u),
        losses.has_two,
        {"beta": 0.1},
        scores=True,
    ),
    Objective(
        "grpo_offline",
        "−(1/N) Σ_i [ min(ρ_i A_i, clip(ρ_i, 1±ε) A_i) − β_kl (e^{−z_i} + z_i − 1) ], "
        "z_i = Δ_i/L_i in ±20, ρ_i = e^{z_i}, A_i = δ_i/std(s)",
        "MPO App. H",
        losses.grpo,
        losses.has_spread,
        {"beta": 0.1, "clip": 0.2, "kl_weight": 0.04},
        scores=True,
    ),
    _pairwise(
        "ipo",
        "(Δ_w − Δ_l − 1/(2β))²; length_normalized: each Δ divided by L",
        "Azar et al. 2023",
        losses.ipo,
        length_normalized=False,
    ),
    _pairwise(
        "slic",
        "max(0, δ₀ − ℓ_w + ℓ_l) − λ ℓ_w",
        "SLiC-HF (Zhao et al. 2023)",
        losses.slic,
        "logp",
        False,
        delta=1.0,
        sft_weight=0.1,
    ),
    Objective(
        "rrhf",
        "mean over pairs of max(0, ℓ_l/L_l − ℓ_w/L_w), − λ ℓ_best once",
        "RRHF (Yuan et al. 2023)",
        losses.rrhf,
        losses.has_pair,
        {"pairing": "all", "sft_weight": 1.0},
        "q",
        False,
    ),
    _pairwise(
        "cpo",
        "−log σ(β(ℓ_w − ℓ_l)) − λ ℓ_w",
        "CPO (Xu et al. 2024)",
        losses.cpo,
        "beta_logp",
        False,
        sft_weight=1.0,
    ),
    _pairwise(
        "kto_pair",
        "(1 − σ(u_w − z_l)) + (1 − σ(z_w − u_l)), z = β·max(0, mean Δ over the batch), detached",
        "KTO (Ethayarajh et al. 2024), paired estimate",
        losses.kto_pair,
        batchwise=True,
    ),
    _pairwise(
        "orpo",
        "−ℓ_w/L_w − λ log σ(odds_w − odds_l), odds = q − log(1 − e^q), q = ℓ/L",
        "ORPO (Hong et al. 2024)",
        losses.orpo,
        "q",
        False,
        sft_weight=0.1,
    ),
    _pairwise(
        "r_dpo",
        "−log σ(u_w − u_l + α(L_w − L_l))",
        "R-DPO (Park et al. 2024)",
        losses.r_dpo,
        length_penalty=0.01,
    ),
    _pairwise(
        "simpo",
        "−log σ(β ℓ_w/L_w − β ℓ_l/L_l − γ)",
        "SimPO (Meng et al. 2024)",
        losses.simpo,
        "v",
        False,
        beta=2.0,
        gamma=1.0,
    ),
    _pairwise(
        "sppo",
        "(Δ_w − 1/(2β))² + (Δ_l + 1/(2β))²",
        "SPPO (Wu et al. 2024), hard labels",
        losses.sppo,
    ),
    Objective(
        "sft",
        "−ℓ_w/L_w, mean over Y+",
        "supervised fine-tuning",
        losses.sft,
        losses.has_chosen,
        {},
        "q",
        False,
    ),
    Objective(
        "mppo_point_ce",
        "mean_i −[ s_i q_i + (1−s_i) log(1 − e^{q_i}) ], s in [0, 1]",
        "MPPO Eq. 6",
        losses.point_ce,
        losses.has_any,
        {"score_scale": 10.0},
        "p",
        False,
        True,
    ),
    Objective(
        "mppo_point_mse",
        "mean_i (s_i − p_i)², s in [0, 1]",
        "MPPO Eq. 7, with its sign mended",
        losses.point_mse,
        losses.has_any,
        {"score_scale": 10.0},
        "p",
        False,
        True,
    ),
    _pairwise(
        "mppo_pair_single",
        "−log σ(p_w − p_l), l drawn",
        "MPPO Eq. 8",
        losses.likelier,
        "p",
        False,
        pairing="best_random",
    ),
    Objective(
        "mppo_pair_mns",
        "−Σ_i log σ(p_w − p_i)",
        "MPPO Eq. 9",
        losses.sum_of_logs(losses.own_pairs),
        losses.has_pair,
        {"pairing": "best_vs_rest"},
        "p",
        False,
    ),
    Objective(
        "mppo_pair_mnm",
        "−log σ(N⁻ p_w − Σ_i p_i)",
        "MPPO Eq. 10",
        losses.log_of_sum(losses.own_pairs),
        losses.has_pair,
        {"pairing": "best_vs_rest"},
        "p",
        False,
    ),
    Objective(
        "mppo_pair_mcs",
        "−Σ over pairs with s_a > s_b of log σ(p_a − p_b)",
        "MPPO Eq. 11",
        losses.sum_of_logs(losses.own_pairs),
        losses.has_pair,
        {"pairing": "all"},
        "p",
        False,
    ),
    Objective(
        "mppo_pair_mcm",
        "−log σ( Σ over pairs with s_a > s_b of (p_a − p_b) )",
        "MPPO Eq. 12",
        losses.log_of_sum(losses.own_pairs),
        losses.has_pair,
        {"pairing": "all"},
        "p",
        False,
    ),
    Objective(
        "mppo_list_mle",
        "Σ_i [ logsumexp over {j: s_j ≤ s_i} of p_j − p_i ]",
        "MPPO Eq. 13",
        lambda t: losses.ranking(t, t.p),
        losses.has_two,
        {},
        "p",
        False,
        True,
    ),
)

TABLE: Mapping[str, Objective] = MappingProxyType({row.name: row for row in _ROWS})
NAMES: tuple[str, ...] = tuple(TABLE)


def find(name: str) -> Objective:
    """The row of a name.

    Raises:
        ValueError: no objective has this name.
    """
    if name not in TABLE:
        raise ValueError(f"no objective is named {name!r}; there are {', '.join(NAMES)}")
    return TABLE[name]


def compute(name: str, batch: Batch, **hyper: Any) -> Tensor:
    """The loss of each group.

    Args:
        name: one of `NAMES`.
        batch: B groups of up to N responses.
        hyper: hyper-parameters of the row, with METHODS' names; the rest take its defaults.

    Returns:
        [B]; exactly 0 with no gradient where `usable` is False. The mean over usable groups is the
        caller's.

    Example:
        A log-ratio margin of 1 nat at β = 0.1 costs −log σ(0.1):

        >>> policy, reference = torch.tensor([[-1.0, -3.0]]), torch.tensor([[-2.0, -3.0]])
        >>> mask = torch.ones(1, 2, dtype=torch.bool)
        >>> batch = Batch(policy, reference, mask * 4, None, torch.tensor([[True, False]]), mask)
        >>> compute("dpo", batch)
        tensor([0.6444])
    """
    row, terms = _terms(name, batch, hyper)
    return fill(row.loss(terms), row.usable(terms))


def usable(name: str, batch: Batch, **hyper: Any) -> Tensor:
    """[B] bool: the groups that have something to contrast under this objective."""
    row, terms = _terms(name, batch, hyper)
    return row.usable(terms)


def rewards(name: str, batch: Batch, **hyper: Any) -> Tensor:
    """[B, N] rewards of the responses (METHODS §5), detached; masked entries mean nothing.

    Deviation terms are no part of the reward, and `multi_dpo` is measured against reference 1.
    """
    row, terms = _terms(name, batch, hyper)
    reference = batch.reference_logps
    if row.reward == "u_first" and reference is not None:
        first = replace(batch, reference_logps=reference[..., 0], weights=None)
        terms = Terms(name, first, terms.hyper)
    shown: dict[Reward, Callable[[], Tensor]] = {
        "u": lambda: terms.u,
        "u_first": lambda: terms.u,
        "v": lambda: terms.v,
        "beta_logp": lambda: terms["beta"] * terms.logp,
        "logp": lambda: terms.logp,
        "q": lambda: terms.q,
        "p": lambda: terms.p,
    }
    return shown[row.reward]().detach()


def sides(name: str, batch: Batch, **hyper: Any) -> contrasts.Sides:
    """The chosen and rejected sets that this objective sees."""
    return _terms(name, batch, hyper)[1].sides


def _terms(name: str, batch: Batch, hyper: Hyper) -> tuple[Objective, Terms]:
    row = find(name)
    return row, Terms(name, batch, row.complete(hyper))


HYPER_PARAMETERS = tuple(sorted({key for row in _ROWS for key in row.defaults} | COMMON.keys()))
"""Every hyper-parameter of any objective."""
