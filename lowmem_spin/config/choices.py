"""What a game chooses from by name, each with options of its own: samplers, oracles, penalties, early stopping."""

import math
from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator

from lowmem_spin.config.bounds import BATCH, EPOCHS, GAMES_LONG, REQUESTS, ROWS, SINGLE, TOKENS
from lowmem_spin.config.endpoint_fields import check_address, check_extra_body, check_variable
from lowmem_spin.config.paths import PathText
from lowmem_spin.config.section import Section


def named(default: str) -> Callable[[Any], Any]:
    """A name alone is that choice with its defaults, and options alone are the default's."""

    def read(value: Any) -> Any:
        if isinstance(value, str):
            return {"name": value}
        return {"name": default, **value} if isinstance(value, dict) else value

    return read


def _option(value: Any) -> Any:
    """A number in quotes is one, too."""
    if not isinstance(value, bool | int | float | str):
        raise ValueError("give a number, a text, true or false")
    try:
        number = float(value)
    except ValueError:
        return value
    if not math.isfinite(number):
        raise ValueError("give a finite number")
    return number if isinstance(value, str) else value


Option = Annotated[bool | int | float | str, BeforeValidator(_option)]
"""What an option of an optimiser or a schedule may be; transformers knows which there are."""


class FunctionOracle(Section):
    """An oracle that is a Python function: tests, parsers, exact answers, anything that can be computed."""

    name: Literal["function"] = "function"
    """Selects a Python function as the oracle."""
    function: PathText = "exact_match"
    """Function that judges answers: exact_match, by which the data's answer beats any other, or your own as file.py:function.
    It is called with (messages, answers, reference) and returns one score per answer, or a K by K matrix of preferences."""


class RewardModelOracle(Section):
    """An oracle that scores each answer with a reward model; preferences follow by Bradley-Terry."""

    name: Literal["reward_model"] = "reward_model"
    """Selects a reward model as the oracle: any sequence-classification model with one output and a chat template."""
    model: PathText
    """Hub id or local folder of the reward model."""
    revision: str | None = None
    """Branch, tag or commit of the reward model on the hub; null is its main branch. Set a commit to pin it."""
    batch_size: int = Field(default=16, ge=1, le=BATCH)
    """Conversations scored in one forward pass. No result depends on it; lower it if memory runs out."""
    max_length: int = Field(default=2048, ge=1, le=TOKENS)
    """Longest conversation in tokens; longer ones lose their beginning. Raise it if prompts and answers do not fit and the
    reward model can read more."""


class PairRMOracle(Section):
    """An oracle that compares two answers side by side: PairRM, the pairwise ranker of LLM-Blender."""

    name: Literal["pairrm"] = "pairrm"
    """Selects PairRM as the oracle; it reads every two answers in both orders."""
    model: PathText = "llm-blender/PairRM-hf"
    """Hub id or local folder of the PairRM model; change it only for another model of that kind."""
    revision: str | None = None
    """Branch, tag or commit of the PairRM model on the hub; null is its main branch. Set a commit to pin it."""
    batch_size: int = Field(default=16, ge=1, le=BATCH)
    """Ordered pairs of answers read in one forward pass. No result depends on it; lower it if memory runs out."""


class JudgeOracle(Section):
    """An oracle that asks a language model behind an OpenAI-compatible endpoint."""

    name: Literal["judge"] = "judge"
    """Selects a language model as the judge; it compares every two answers in both orders."""
    base_url: str
    """Address of the OpenAI-compatible endpoint, for instance http://localhost:8000/v1. It is shown in the report, so no name,
    password or query is taken in it."""
    model: str
    """Name under which the endpoint serves the judge model. It is part of every result: scores of different judges are
    not comparable."""
    api_key_env: str | None = None
    """Name of the environment variable that holds the API key; null sends no key, which is enough for most local servers. The
    key itself is written nowhere."""
    concurrency: int = Field(default=8, ge=1, le=REQUESTS)
    """Requests in flight at the same time. No result depends on it; lower it if the endpoint limits your rate."""
    max_tokens: int | None = Field(default=None, ge=1, le=TOKENS)
    """Longest reply of the judge in tokens; null is 1024 for comparing two answers and 2048 for an MT-Bench grade. Raise it
    if replies end before their verdict."""
    extra_body: dict[str, Any] = Field(default_factory=dict)
    """More fields of every request; null leaves one out that is sent otherwise. Set it where the endpoint refuses how it is
    asked: OpenAI's reasoning models want {max_tokens: null, max_completion_tokens: 4096, temperature: null}."""

    @field_validator("base_url")
    @classmethod
    def _address(cls, value: str) -> str:
        check_address(value)
        return value

    @field_validator("api_key_env")
    @classmethod
    def _variable(cls, value: str | None) -> str | None:
        if value is not None:
            check_variable(value)
        return value

    @field_validator("extra_body")
    @classmethod
    def _more_of_a_request(cls, value: dict[str, Any]) -> dict[str, Any]:
        check_extra_body(value)
        return value


OracleChoice = FunctionOracle | RewardModelOracle | PairRMOracle | JudgeOracle
Weight = Annotated[float, Field(ge=0, le=SINGLE)]


class Regularizer(Section):
    """RSPO's penalties for leaving the base, added to the sppo loss. RSPO's own runs use weights of 0.1 and 0.5."""

    reverse_kl: Weight = 0.0
    """Weight of the penalty KL(policy || base); 0 turns it off. Raise it if the policy gives answers that the base finds
    unlikely."""
    forward_kl: Weight = 0.0
    """Weight of the penalty KL(base || policy); 0 turns it off. Raise it if the policy loses answers that the base gives."""
    chi2: Weight = 0.0
    """Weight of the penalty chi-square(policy | base); 0 turns it off. It is stronger than reverse_kl on answers that
    have become much likelier than under the base."""
    chi2_smoothed: Weight = 0.0
    """Weight of `chisqsm1` of RSPO's code, where a log-ratio d costs 1 / (1 + exp(-d)) instead of chi2's exp(d); 0 turns it
    off. Use it to repeat that code's runs, not to hold answers back: the likelier one has become, the less it is held."""
    reverse_kl_no_entropy: Weight = 0.0
    """Weight of the cross-entropy of the base under the policy, which is reverse_kl without its entropy term; 0 turns it
    off. Use it instead of reverse_kl to weight the entropy separately."""
    entropy: Weight = 0.0
    """Weight of the policy's negative entropy, so that a larger weight keeps answers more diverse; 0 turns it off."""
    clamp: float = Field(default=10.0, gt=0, le=SINGLE)
    """Largest log-ratio in nats that forward_kl, chi2 and chi2_smoothed exponentiate; answers beyond it get no gradient from
    them. Lower it if these penalties make training unstable."""
    importance: Literal["none", "corrected"] = "none"
    """How the penalties treat answers that the last iterate gave. none: as the policy's own, as in RSPO's code. corrected:
    each answer is weighted by policy / last iterate, at most exp(clamp). That removes this bias with game.samples 2; of more
    samples the best and the worst are no draws of the policy, and another bias stays."""

    @property
    def weights(self) -> dict[str, float]:
        """{kind: weight} of those that count."""
        kinds = self.model_dump(exclude={"clamp", "importance"})
        return {kind: weight for kind, weight in kinds.items() if weight}


class Rejection(Section):
    """Samples the mixture exactly: answers are proposed until one is accepted."""

    name: Literal["rejection"] = "rejection"
    """Selects rejection sampling: exact samples of the mixture, but many proposals where its policies differ."""
    proposals: int = Field(default=100, ge=1, le=BATCH)
    """Most proposals per prompt; a prompt without an accepted one is left out of the iteration. Raise it if too many
    prompts are left out."""


class Resampled(Section):
    """Samples the mixture approximately: one of several weighted proposals is drawn."""

    name: Literal["snis", "smc"] = "snis"
    """Selects weighted proposals. snis: whole answers are weighted at the end. smc: proposals are also resampled while they
    grow; use it for long answers."""
    proposals: int = Field(default=16, ge=1, le=BATCH)
    """Proposals per prompt: more come closer to the mixture and take proportionally longer."""


class TokenLevel(Section):
    """Mixes next-token distributions instead of whole answers, as Nash-MD does: fast, but another policy than the mixture."""

    name: Literal["token_level"] = "token_level"
    """Selects token-by-token mixing as in Nash-MD, without a correction towards the mixture of whole answers."""


class NoSampler(Section):
    """No mixture: every opponent answers as it was trained."""

    name: Literal["none"] = "none"
    """Selects no sampler: opponents are the past iterates themselves, as in SPIN and alpha-SPIN."""


Temperature = Annotated[float, Field(gt=0, le=100)]


class GFlowNet(Section):
    """An extra adapter per iterate, fine-tuned to sample the mixture by itself; generating then needs one policy, not two."""

    name: Literal["gflownet"] = "gflownet"
    """Selects GFlowNet fine-tuning with sub-trajectory balance, as in appendix A of arXiv 2404.04291; the defaults are
    that paper's where it gives any."""
    prompts: int = Field(default=1000, ge=1, le=ROWS)
    """Rows of the data whose prompts the sampler is fine-tuned on. Raise it if it does not generalise to other prompts."""
    own_prompts: bool = False
    """Whether these are other rows than those that are played with, of which then so many fewer are left. false: the first
    of its iteration's. Set it to true to know how it answers prompts that it has not been fine-tuned on."""
    epochs: int = Field(default=10, ge=1, le=EPOCHS)
    """Passes over the sampler's prompts. Raise it if the reported log_ratio is still falling at the end."""
    samples: int = Field(default=1, ge=1, le=BATCH)
    """Sequences of each prompt in one optimiser step, of which each is drawn or replayed. batch_size has to be a multiple of
    it. Raise it where prompts differ much in difficulty; a pass takes that many times as long."""
    learning_rate: float = Field(default=1e-4, gt=0, le=SINGLE)
    """Peak learning rate of the sampler's fine-tuning; it falls linearly to 0. Lower it if the loss diverges."""
    batch_size: int = Field(default=32, ge=1, le=BATCH)
    """Sequences in one optimiser step of the sampler's fine-tuning. Raise it if the loss is too noisy."""
    warmup_ratio: float = Field(default=0.0, ge=0, le=1)
    """Share of the sampler's steps, from 0 to 1, in which the learning rate rises to its peak. Raise it if the first steps are
    unstable."""
    max_grad_norm: float = Field(default=1.0, ge=0, le=SINGLE)
    """Gradient norm above which the sampler's gradients are scaled down; 0 turns clipping off. Lower it if the loss
    has spikes."""
    lam: float = Field(default=1.0, gt=0, le=1)
    """Weight of a sub-trajectory relative to one that is a token shorter. Below 1, short stretches of a sequence count more."""
    buffer: int = Field(default=8, ge=1, le=BATCH)
    """Sequences kept per prompt to train the sampler on again, the newest ones. It matters only with replay above 0."""
    replay: float = Field(default=0.25, ge=0, le=1)
    """Probability, per prompt and step, of training on a kept sequence instead of drawing a new one. Raise it
    to spend less time on generating."""
    explore: float = Field(default=0.666, ge=0, le=1)
    """Probability that a step samples at a temperature from `temperatures` instead of at 1. Raise it if the sampler misses
    answers that the mixture gives."""
    temperatures: tuple[Temperature, Temperature] = (0.5, 2.0)
    """Lowest and highest sampling temperature of exploring steps. Widen the range to explore more."""
    reward_temperature: float = Field(default=1.0, gt=0, le=SINGLE)
    """Temperature by which the log reward is divided at first; it falls to 1. Above 1, training starts from an easier, flatter
    target."""
    anneal: float = Field(default=0.5, ge=0, le=1)
    """Share of the sampler's steps, from 0 to 1, in which reward_temperature falls to 1."""


Sampler = NoSampler | TokenLevel | Rejection | Resampled | GFlowNet


class StopWhen(Section):
    """Ends the game early, after an iterate that has gone wrong. Any bound that is set can end it; null turns a bound off."""

    kl_to_base: float | None = Field(default=None, gt=0, le=SINGLE)
    """Stop when KL(iterate || base) exceeds this many nats per completion. With a warm start, the KL includes the warm start's
    share."""
    chosen_logp_falls: int | None = Field(default=None, ge=1, le=GAMES_LONG)
    """Stop when the log-prob of the held-out answers has fallen in this many iterations in a row."""
    length_drift: float | None = Field(default=None, gt=0, le=SINGLE)
    """Stop when the mean answer length differs from its value before the first iterate by more than this share: 0.5 means
    half as long again, or half as long."""
    win_rate_below: float | None = Field(default=None, ge=0, le=1)
    """Stop when an iterate's win-rate against the one before it, from 0 to 1, falls below this. Judged by game.oracle on
    held-out prompts."""
