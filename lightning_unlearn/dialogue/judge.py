"""A language model that rates dialogues."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from lightning_unlearn.core.checks import at_least
from lightning_unlearn.core.distributed import rank
from lightning_unlearn.core.lightning import MisconfigurationException
from lightning_unlearn.core.modes import evaluating
from lightning_unlearn.dialogue.adapters import place_of, save_adapter
from lightning_unlearn.dialogue.dialogue import Dialogue
from lightning_unlearn.dialogue.extractors import AnalysisExtractor, Extractor, LogitExtractor
from lightning_unlearn.dialogue.judge_steps import JudgeSteps
from lightning_unlearn.dialogue.label_reader import LabelReader
from lightning_unlearn.dialogue.label_tokens import LabelTokens, label_tokens
from lightning_unlearn.dialogue.opening import Opened, opened, prompt_format_of
from lightning_unlearn.dialogue.probe import ProbeExtractor
from lightning_unlearn.dialogue.prompt import ANALYSIS_CUE, RATING_CUE, BuiltPrompt, JudgePrompt
from lightning_unlearn.dialogue.rating import Rating, checked
from lightning_unlearn.dialogue.selectors.dense import supply_encoder
from lightning_unlearn.dialogue.selectors.selector import Selector
from lightning_unlearn.dialogue.selectors.state_encoder import StateEncoder
from lightning_unlearn.dialogue.task import RatingTask
from lightning_unlearn.dialogue.tuning import JudgeTuning
from lightning_unlearn.language.causal_lm import DType, LitCausalLM
from lightning_unlearn.language.continuation import Choose, likeliest
from lightning_unlearn.language.generation import generate_all
from lightning_unlearn.language.prompt_format import PromptFormat

if TYPE_CHECKING:
    from peft import LoraConfig

__all__ = ["DialogueJudge"]


class DialogueJudge(JudgeSteps):
    r"""A language model that rates dialogues.

    A judge reads instruction, rubric, a few rated dialogues and the one that is to be rated; its rating is read from
    the probabilities of the labels, or from what it writes. Examples that a batch shares are computed once.

    Batches are lists of [`Dialogue`][lightning_unlearn.Dialogue], as the data modules of dialogues give them.

    Args:
        model: Hub id, folder, folder of an adapter or of a probe, or GGUF file of a causal language model, or a model
            of transformers. A [`LitCausalLM`][lightning_unlearn.LitCausalLM] has more ways to load one.
        task: What is rated, on which scale: a task, or the name of one that comes with the library. By default that of
            the prompt.
        prompt: How the judge is asked; by default ``JudgePrompt(task)``, and that of a saved probe.
        selector: Chooses the examples for each dialogue; by default the first ``shots`` of the pool are those of all.
            A `DenseSelector` without an encoder compares the judge's own states.
        shots: Examples in a prompt, where there is a pool. By default 4, and none with a `ProbeExtractor`, which is
            fitted to the pool.
        extractor: How the rating is read: by default `LogitExtractor`, and `AnalysisExtractor` where the analysis comes
            first; of a folder with a probe, this one.
        pool: Rated dialogues that examples are taken from; by default the ``pool`` of the Trainer's data module.
        lora: Train low-rank adapters in place of the weights, as in `LitCausalLM`.
        lr: Learning rate.
        dtype: Type of the weights.
        prompt_format: Format of the model's prompts; by default that of its folder or its chat template. A model
            without one is asked in plain text.
        max_tokens: Largest batch in tokens; those of training are as the data module makes them.
        tuning: The loss that the judge is fine-tuned with; by default `JudgeTuning`.

    Raises:
        FileNotFoundError: If there is no such folder or file.
        ValueError: If ``task`` is not that of the prompt, the model has no tokenizer or can't write a chat that
            the prompt asks for, or an argument is out of range.

    References:
        Jia et al., "Leveraging LLMs for Dialogue Quality Measurement", 2024, arXiv:2406.17304.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | nn.Module | LitCausalLM,
        task: RatingTask | str | None = None,
        prompt: JudgePrompt | None = None,
        selector: Selector | None = None,
        shots: int | None = None,
        extractor: Extractor | None = None,
        pool: Sequence[Dialogue] | None = None,
        lora: LoraConfig | dict[str, Any] | None = None,
        lr: float = 2e-4,
        dtype: DType = "float32",
        prompt_format: PromptFormat | None = None,
        max_tokens: int = 8192,
        tuning: JudgeTuning | None = None,
    ) -> None:
        at_least("shots", 0 if shots is None else shots, 0)
        at_least("max_tokens", max_tokens, 1)
        parts: Opened = opened(model, task, prompt, extractor, lora, lr, dtype)
        super().__init__(parts.lm, tuning or JudgeTuning(), max_tokens)
        self.prompt = parts.prompt
        self.prompt_format = prompt_format_of(self.lm, prompt_format or parts.prompt_format)
        if self.prompt.icl_format == "chat" and not self.prompt_format.is_chat:
            raise ValueError(
                "icl_format='chat' writes examples as messages, but the model's tokenizer has no chat template. Use "
                "icl_format='inline', or pass prompt_format=PromptFormat(chat_template=...)."
            )
        own = AnalysisExtractor() if self.prompt.mode == "analysis_first" else LogitExtractor()
        self.extractor: Extractor = parts.extractor or own
        probes = isinstance(self.extractor, ProbeExtractor)
        self.shots = (0 if probes else 4) if shots is None else shots
        self.selector = selector
        self.pool: list[Dialogue] = []
        if pool is not None:
            self.take_pool(pool)

    @property
    def task(self) -> RatingTask:
        """What is rated."""
        return self.prompt.task

    @cached_property
    def label_tokens(self) -> LabelTokens:
        """Tokens of the labels after the cue of a rating."""
        asked = {"role": "user", "content": "### Answer"}  # the end of each prompt
        before = f"{ANALYSIS_CUE} Good.\n" if self.prompt.mode == "analysis_first" else ""

        def encode(texts: list[str]) -> list[list[int]]:
            begun = [{"role": "assistant", "content": text, "prefix": True} for text in texts]
            return self.prompt_format.prompts([[asked, answer] for answer in begun])

        return label_tokens(encode, f"{before}{RATING_CUE}", self.task.labels)

    def take_pool(self, pool: Sequence[Dialogue]) -> None:
        """Take examples from other dialogues than before.

        Args:
            pool: Rated dialogues.
        """
        self.pool = list(pool)
        if self.selector is not None and self.pool:
            supply_encoder(self.selector, StateEncoder(self.lm))
            self.selector.fit(self.pool)

    def setup(self, stage: str) -> None:
        """Take the examples of the data module, where none were given."""
        data = getattr(self._trainer, "datamodule", None)
        pool = getattr(data, "pool", None)
        if not self.pool and pool:
            self.take_pool(pool)

    def on_fit_start(self) -> None:
        """Reject a probe, which is not fitted by gradients.

        Raises:
            MisconfigurationException: If the judge reads its ratings off a probe.
        """
        if isinstance(self.extractor, ProbeExtractor):
            raise MisconfigurationException(
                "fit would train the judge's weights, and its ProbeExtractor has a closed form. Run trainer.test, "
                "trainer.validate or trainer.predict, which fit it to the data module's pool, or call "
                "judge.fit_probe(rated_dialogues). To train the weights, use another extractor."
            )

    def prepare(self) -> None:
        """Fit a probe to the pool, where it is not fitted yet."""
        if isinstance(self.extractor, ProbeExtractor) and self.extractor.probe is None and self.pool:
            self.fit_probe(self.pool)

    def fit_probe(self, dialogues: Sequence[Dialogue]) -> DialogueJudge:
        """Fit the judge's `ProbeExtractor` to rated dialogues.

        Args:
            dialogues: Rated dialogues, 8 or more.

        Returns:
            The judge itself.

        Raises:
            TypeError: If the judge has another extractor, or they are something other than dialogues.
            ValueError: If there are too few of them, one has no ratings or one outside the scale, or all have the same.

        Example:
            ```python
            judge = DialogueJudge("HuggingFaceTB/SmolLM2-135M-Instruct", extractor=ProbeExtractor())
            judge.fit_probe(JSONLDialogues("rated.jsonl").rated).save_probe("judge")
            DialogueJudge("judge").rate([Dialogue("1", (Turn("user", "Hi"), Turn("assistant", "Hello!")))])
            ```
        """
        if not isinstance(self.extractor, ProbeExtractor):
            raise TypeError(
                f"The judge reads its ratings with {type(self.extractor).__name__}, which has nothing to fit. Pass "
                "extractor=ProbeExtractor()."
            )
        rows = checked(dialogues)
        for dialogue in rows:
            self.task.check_on_scale(dialogue)
        self.extractor.fit(self, rows)
        return self

    def examples(self, dialogue: Dialogue, shots: int | None = None) -> list[Dialogue]:
        """The examples of a dialogue, the best first.

        Args:
            dialogue: What is to be rated.
            shots: How many; by default ``shots`` of the judge.

        Raises:
            ValueError: If there is a selector and nothing to select from.
        """
        count = self.shots if shots is None else shots
        if count == 0:
            return []
        if self.selector is None:
            return [part for part in self.pool if part.id != dialogue.id][:count]
        if not self.pool:
            raise ValueError(
                f"{type(self.selector).__name__} has no dialogues to select examples from. Pass pool=..., a data "
                "module with a pool, or shots=0."
            )
        return [self.pool[number] for number in self.selector.select(dialogue, count)]

    def prompts(self, dialogues: Sequence[Dialogue], shots: int | None = None, room: int = 0) -> list[BuiltPrompt]:
        """The prompt of each dialogue, with its examples.

        Args:
            dialogues: What is to be rated.
            shots: Examples in a prompt; by default ``shots`` of the judge.
            room: Tokens that follow the prompt beside those that rating takes, which a model with a limit has to hold.
        """
        longest = self._longest_prompt(room)
        return [
            self.prompt.build(self.prompt_format, dialogue, self.examples(dialogue, shots), longest)
            for dialogue in dialogues
        ]

    def fits(self, prompt: Sequence[int]) -> bool:
        """Whether a model with a limit holds a prompt and a label.

        Args:
            prompt: Token ids.
        """
        return self._holds is None or len(prompt) + self._label_length <= self._holds

    def _longest_prompt(self, room: int) -> int | None:
        """Longest prompt beside what follows it, where the model or the prompt has a limit."""
        asked, holds = self.prompt.max_length, self._holds
        if holds is None or (asked is not None and self.lm._positions is None):
            return asked
        written = self.extractor.max_new_tokens
        if self.prompt.mode == "analysis_first" and written:
            written += len(self.prompt_format.tokenizer(f"\n{RATING_CUE}")["input_ids"])
        longest = holds - self._label_length - written - room
        if longest < 1:
            raise ValueError(
                f"The judge's model holds {holds} tokens, which leaves none for a prompt beside "
                f"max_new_tokens={self.extractor.max_new_tokens} of its answer. Lower max_new_tokens."
            )
        return longest if asked is None else min(asked, longest)

    @property
    def _holds(self) -> int | None:
        """Tokens that the model holds."""
        config = self.lm.model.config.get_text_config()
        made_for = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
        return self.lm._positions or made_for or None

    @property
    def _label_length(self) -> int:
        """Tokens of the longest label after a prompt."""
        return len(self.label_tokens.head) + max(map(len, self.label_tokens.tails))

    def forward(self, dialogues: Sequence[Dialogue]) -> list[Rating]:
        """One rating a dialogue."""
        return self.extractor.score(self, self.prompts(dialogues)) if dialogues else []

    def rate(self, dialogues: Sequence[Dialogue]) -> list[Rating]:
        """One rating a dialogue, in evaluation mode and without gradients.

        Args:
            dialogues: What is to be rated.

        Raises:
            TypeError: If they are something other than dialogues.

        Example:
            ```python
            judge = DialogueJudge("HuggingFaceTB/SmolLM2-135M-Instruct")
            judge.rate([Dialogue("1", (Turn("user", "Hi"), Turn("assistant", "Hello!")))])[0].score
            ```
        """
        rows = checked(dialogues)
        with evaluating(self), self._reading(LabelReader(self.lm, self.max_tokens)):
            return self(rows)

    def label_log_probs(self, prompts: Sequence[Sequence[int]], whole: bool = False) -> Tensor:
        """Log-probability of each label after prompts that end with the cue of a rating.

        Args:
            prompts: Token ids.
            whole: Whether all tokens of a label count also where the first one tells it.

        Returns:
            Shape ``(N, L)``, fp32, on the CPU.
        """
        reader = self._reader or LabelReader(self.lm, self.max_tokens)
        return reader.read(prompts, self.label_tokens, whole)

    def write(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        choose: Choose = likeliest,
        copies: int = 1,
        batch_size: int = 64,
    ) -> list[str]:
        """What the judge writes after each prompt.

        Args:
            prompts: Token ids.
            max_new_tokens: Longest answer in tokens.
            choose: Chooses the next token.
            copies: Answers to each prompt.
            batch_size: Answers written together.

        Returns:
            The answers, those to one prompt together.
        """
        return generate_all(self.lm.model, self.prompt_format, prompts, max_new_tokens, batch_size, choose, copies)

    def save_adapter(self, folder: str | os.PathLike[str]) -> None:
        """Write the adapters as a folder of PEFT, which `DialogueJudge` opens by its path.

        Args:
            folder: Where to; made if missing.

        Raises:
            ValueError: If the judge has no adapters, or its base model is an object without a name.
        """
        save_adapter(self.lm, folder)
        self.prompt_format.save(os.fspath(folder))

    def save_probe(self, folder: str | os.PathLike[str]) -> None:
        """Write the probe without the model's weights, as a folder that `DialogueJudge` opens by its path.

        Args:
            folder: Where to; made if missing.

        Raises:
            TypeError: If the judge has no `ProbeExtractor`.
            RuntimeError: If it is not fitted.
            ValueError: If its prompts show examples, or its model is an object without a name.
        """
        if not isinstance(self.extractor, ProbeExtractor):
            raise TypeError(f"The judge has no probe: it reads its ratings with {type(self.extractor).__name__}.")
        self._save_probe(self.extractor, folder, place_of(self.lm))

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write the judge, with its adapters merged, as a folder that `AutoModelForCausalLM` opens.

        Args:
            folder: Where to; made if missing.
        """
        self.lm.save_pretrained(os.fspath(folder))
        self.prompt_format.save(os.fspath(folder))
        if isinstance(self.extractor, ProbeExtractor) and self.extractor.probe is not None:
            self._save_probe(self.extractor, folder, ".")

    def _save_probe(self, extractor: ProbeExtractor, folder: str | os.PathLike[str], model: str) -> None:
        if self.shots and self.pool:
            raise ValueError(
                f"The judge shows {self.shots} examples in its prompts, which the folder of a probe does not keep. "
                "Fit a probe with shots=0."
            )
        if rank() == 0:
            extractor.save(folder, model, self.prompt)
            self.prompt_format.save(os.fspath(folder))
