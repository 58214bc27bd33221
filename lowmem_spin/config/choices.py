"""What a game chooses from by name, each with options of its own: losses, samplers, oracles, penalties, brakes."""

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import Field

from lowmem_spin.config.section import Section


def named(default: str) -> Callable[[Any], Any]:
    """A name alone is that choice with its defaults, and options alone are the default's."""

    def read(value: Any) -> Any:
        if isinstance(value, str):
            return {"name": value}
        return {"name": default, **value} if isinstance(value, dict) else value

    return read


class DPO(Section):
    """The logistic loss of DPO and SPIN."""

    name: Literal["dpo"] = "dpo"
    """-log sigmoid(beta * margin); the margin is chosen less rejected, in log-probs relative to the reference."""
    beta: float = Field(default=0.1, gt=0)
    """Strength of the pull to the reference; small values move further per pair. SPIN's value is 0.1."""


class IPO(Section):
    """The squared loss of IPO, on sums over a completion's tokens."""

    name: Literal["ipo"] = "ipo"
    """(margin - 1 / (2 tau))^2, which stops pulling where the margin is reached."""
    tau: float = Field(default=0.1, gt=0)
    """Strength of the pull to the reference: 0.1 aims at a margin of 5 nats per completion. Played to each iteration's
    exact minimum, SPIN is stable only above 1/8; training that stops earlier is not bound by this."""


class IPOLengthNormalized(Section):
    """TRL's form of IPO: both sides' log-ratios divided by their lengths."""

    name: Literal["ipo_length_normalized"] = "ipo_length_normalized"
    """(margin per token - 1 / (2 tau))^2. Needs a normalised reference: alpha 0 or 1."""
    tau: float = Field(default=0.1, gt=0)
    """Strength of the pull to the reference: 0.1, which is TRL's, aims at a margin of 5 nats per token."""


class Hinge(Section):
    """The hinge of TRL and of SPIN's code."""

    name: Literal["hinge"] = "hinge"
    """max(0, 1 - beta * margin), which leaves pairs alone that are apart enough."""
    beta: float = Field(default=0.1, gt=0)
    """Strength of the pull to the reference: pairs are apart enough at a margin of 1 / beta nats."""


class SLiC(Section):
    """The rank loss of SLiC with its term for the data's answer. It has no reference, so alpha means nothing to it."""

    name: Literal["slic"] = "slic"
    """max(0, delta - chosen + rejected) - lam * chosen, in log-probs of the policy."""
    delta: float = Field(default=1.0, gt=0)
    """Nats by which the data's answer has to be likelier than the opponent's."""
    lam: float = Field(default=0.5, ge=0)
    """Weight of the data's answer's own log-prob, which keeps the policy near the data."""


class SPPO(Section):
    """The squared loss of SPPO: each answer's log-ratio is drawn to how much more often than not it wins."""

    name: Literal["sppo"] = "sppo"
    """(log-ratio - eta (win-rate - 1/2))^2, the mean of a pair's two. Needs a normalised reference: alpha 0 or 1."""
    eta: float = Field(default=1000.0, gt=0)
    """Step of the multiplicative weights that it imitates, in nats per win-rate; the paper's is 1000."""
    targets: Literal["soft", "hard"] = "soft"
    """soft: the win-rates that were estimated. hard: 1 for the better answer and 0 for the worse one."""


Loss = DPO | IPO | IPOLengthNormalized | Hinge | SLiC | SPPO


def in_words(loss: dict[str, Any]) -> str:
    """{"name": "ipo", "tau": 0.1} as a title has it: ipo, tau 0.1."""
    return ", ".join(str(value) if name == "name" else f"{name} {value}" for name, value in loss.items())


class FunctionOracle(Section):
    """A preference that is computed."""

    name: Literal["function"] = "function"
    """A Python function scores the answers."""
    function: str = "exact_match"
    """exact_match: the data's answer beats any other. Or file.py:function, called with (messages, answers, reference);
    it returns one score for each answer, or the preferences, a K by K matrix."""


class RewardModelOracle(Section):
    """A preference by Bradley-Terry."""

    name: Literal["reward_model"] = "reward_model"
    """Any sequence-classification model with one output and a chat template."""
    model: str
    """A hub id or a folder."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    batch_size: int = Field(default=16, ge=1)
    """Conversations in one forward; no result depends on it."""
    max_length: int = Field(default=2048, ge=1)
    """In tokens; the beginning of longer conversations is left out."""


class PairRMOracle(Section):
    """A preference by LLM-Blender's pairwise ranker."""

    name: Literal["pairrm"] = "pairrm"
    """Reads two answers at a time, in both orders."""
    model: str = "llm-blender/PairRM-hf"
    """A hub id or a folder."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    batch_size: int = Field(default=16, ge=1)
    """Pairs in one forward; no result depends on it."""


class JudgeOracle(Section):
    """A preference by a language model behind any OpenAI-compatible endpoint."""

    name: Literal["judge"] = "judge"
    """Asked for every two answers, in both orders."""
    base_url: str
    """Of the endpoint, for instance http://localhost:8000/v1."""
    model: str
    """Its name there."""
    api_key_env: str | None = None
    """Environment variable that has the key; null sends none."""
    concurrency: int = Field(default=8, ge=1)
    """Questions under way at a time; no result depends on it."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Of a reply; null is 1024 for a comparison of two answers, 2048 for a grade of MT-Bench."""


Oracle = FunctionOracle | RewardModelOracle | PairRMOracle | JudgeOracle
Weight = Annotated[float, Field(ge=0)]


class Regularizer(Section):
    """RSPO's penalties, added to the sppo loss: weights of divergences of the policy from the base."""

    reverse_kl: Weight = 0.0
    """KL(policy | base)."""
    forward_kl: Weight = 0.0
    """KL(base | policy)."""
    chi2: Weight = 0.0
    """chi-square(policy | base)."""
    reverse_kl_no_entropy: Weight = 0.0
    """The cross-entropy part of the reverse KL."""
    entropy: Weight = 0.0
    """The policy's negative entropy."""
    clamp: float = Field(default=10.0, gt=0)
    """Largest exponent of forward_kl and chi2; beyond it an answer has no gradient."""
    importance: Literal["none", "corrected"] = "none"
    """none: answers of the last iterate count as the policy's own, as in RSPO's code. corrected: they are weighted."""

    @property
    def weights(self) -> dict[str, float]:
        """{kind: weight} of those that count."""
        kinds = self.model_dump(exclude={"clamp", "importance"})
        return {kind: weight for kind, weight in kinds.items() if weight}


class Rejection(Section):
    """Exact samples: proposals are rejected until one is accepted."""

    name: Literal["rejection"] = "rejection"
    """Exact."""
    proposals: int = Field(default=100, ge=1)
    """Tries of a prompt; one that has none accepted is left out of the iteration."""


class Resampled(Section):
    """Of several weighted proposals one is drawn."""

    name: Literal["snis", "smc"] = "snis"
    """snis: whole answers are weighted. smc: unlikely beginnings are also replaced on the way."""
    proposals: int = Field(default=16, ge=1)
    """Of a prompt: the more, the nearer to the mixture."""


class TokenLevel(Section):
    """The mixture taken token by token, which is another policy: Nash-MD's."""

    name: Literal["token_level"] = "token_level"
    """Uncorrected."""


class NoSampler(Section):
    """Opponents answer for themselves."""

    name: Literal["none"] = "none"
    """Past iterates, as they are."""


class GFlowNet(Section):
    """An adapter of its own, fine-tuned from the iterate until it samples the mixture by itself: generation is then plain."""

    name: Literal["gflownet"] = "gflownet"
    """Sub-trajectory balance, as in appendix A of arXiv 2404.04291; the defaults are from there where it has them."""
    prompts: int = Field(default=1000, ge=1)
    """Rows of the data to fine-tune on."""
    epochs: int = Field(default=10, ge=1)
    """Passes over them."""
    learning_rate: float = Field(default=1e-4, gt=0)
    """Peak learning rate; it falls to 0."""
    batch_size: int = Field(default=32, ge=1)
    """Sequences in one step."""
    warmup_ratio: float = Field(default=0.0, ge=0, le=1)
    """Share of the steps in which the learning rate rises."""
    max_grad_norm: float = Field(default=1.0, ge=0)
    """Gradients longer than this are shortened; 0 leaves them."""
    lam: float = Field(default=1.0, gt=0, le=1)
    """Weight of a stretch of a sequence against that of one that is a token shorter."""
    buffer: int = Field(default=8, ge=1)
    """Sequences of each prompt that are kept to train on again."""
    replay: float = Field(default=0.25, ge=0, le=1)
    """Probability that a kept sequence is trained on instead of a new one."""
    explore: float = Field(default=0.666, ge=0, le=1)
    """Probability that a step draws at another temperature than 1."""
    temperatures: tuple[float, float] = (0.5, 2.0)
    """The range of those temperatures."""
    reward_temperature: float = Field(default=1.0, gt=0)
    """At first log R is divided by this."""
    anneal: float = Field(default=0.5, ge=0, le=1)
    """Share of the steps in which that number falls to 1."""


Sampler = NoSampler | TokenLevel | Rejection | Resampled | GFlowNet


class StopWhen(Section):
    """Ends the game before its last iteration, after an iterate that has gone wrong. All bounds that are given hold."""

    kl_to_base: float | None = Field(default=None, gt=0)
    """KL(iterate | base) above this, in nats per completion; a warm start's own part in it counts."""
    chosen_logp_falls: int | None = Field(default=None, ge=1)
    """The held-out answers' log-prob has fallen in so many iterations, one after the other."""
    length_drift: float | None = Field(default=None, gt=0)
    """Mean length of answers off what it was before the first iterate by more than this share of it."""
    win_rate_below: float | None = Field(default=None, ge=0, le=1)
    """Win-rate against the iterate before below this, by game.oracle on held-out prompts."""
