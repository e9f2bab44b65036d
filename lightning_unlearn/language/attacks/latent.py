"""Hidden states of a language model at the positions that predict an answer, and their decoder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_unlearn.core.layers import HOOK_NOT_CALLED, decoder_layers
from lightning_unlearn.core.lightning import MisconfigurationException
from lightning_unlearn.core.scores import Predictions, causal_lm_nll, output_head
from lightning_unlearn.functional.likelihood import IGNORE_INDEX
from lightning_unlearn.language.causal_lm import LitCausalLM
from lightning_unlearn.language.probes import Probe
from lightning_unlearn.language.prompt_format import PromptFormat
from lightning_unlearn.language.tokens import TokenRow

__all__ = [
    "BlockStates",
    "FixedDecoder",
    "SpanBatch",
    "blocks_of",
    "check_same_form",
    "going_on_from",
    "head_on_last",
    "read_span",
    "reading_blocks",
    "span_batches",
    "span_log_prob",
    "span_of",
    "span_rows",
]

_NORMS = ("norm", "ln_f", "final_layer_norm", "final_layernorm", "norm_f")
_TOLERANCE = 1e-5  # of the largest logit: a norm and a head in another order of summation


class SpanBatch(NamedTuple):
    """Rows of a batch, with labels at the answer's span.

    Args:
        inputs: ``input_ids``, ``attention_mask`` and ``labels``, each ``(B, T)``, padded on the right.
        rows: Row of each predicting position, ascending, shape ``(M,)``.
        columns: Its place in the row: the one before that of the predicted token.
    """

    inputs: dict[str, Tensor]
    rows: Tensor
    columns: Tensor


class BlockStates:
    """Outputs of blocks in one forward pass.

    Args:
        outputs: What each block gave, a tensor or a tuple.
    """

    def __init__(self, outputs: list[Any]) -> None:
        self.outputs = outputs

    def __getitem__(self, block: int) -> Tensor:
        return _first(self.outputs[block])

    def __len__(self) -> int:
        return len(self.outputs)


def blocks_of(module: LitCausalLM) -> list[nn.Module]:
    """The decoder blocks.

    Raises:
        MisconfigurationException: If none are found.
    """
    blocks = list(decoder_layers(module.model)[1])
    if not blocks:
        raise MisconfigurationException(
            f"No decoder blocks were found in the {type(module.model).__name__}: it has no list of layers. Latent "
            "checks read the states between blocks; leave them out for this model."
        )
    return blocks


@contextmanager
def reading_blocks(blocks: Sequence[nn.Module]) -> Iterator[BlockStates]:
    """Keep the output of every block of the one forward pass in the body.

    Raises:
        MisconfigurationException: If a block was not called.
    """
    states = BlockStates([None] * len(blocks))

    def keep(number: int) -> Any:
        def hook(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
            states.outputs[number] = output

        return hook

    handles = [block.register_forward_hook(keep(number)) for number, block in enumerate(blocks)]
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()
    if any(output is None for output in states.outputs):
        raise MisconfigurationException(f"A decoder block was not called in a forward pass. {HOOK_NOT_CALLED}")


@contextmanager
def going_on_from(blocks: Sequence[nn.Module], number: int, outputs: BlockStates, state: Tensor) -> Iterator[None]:
    """Let the model continue from a given output of a block, without running it or the blocks before it.

    Args:
        blocks: The decoder blocks.
        number: The block.
        outputs: Outputs of a pass of the same batch, for their form.
        state: What the block gives, ``(B, T, d)``.
    """
    with ExitStack() as stack:
        for i, block in enumerate(blocks[: number + 1]):
            given = state if i == number else outputs[i]
            stack.enter_context(_giving(block, _with_first(outputs.outputs[i], given)))
        yield


@contextmanager
def head_on_last(module: LitCausalLM, count: int) -> Iterator[None]:
    """Let the output head see the last positions only: logits of the others would take most of the memory."""
    head = output_head(module.model)
    if head is None:
        yield
        return
    handle = head.register_forward_pre_hook(lambda _, args: (args[0][:, -count:], *args[1:]))
    try:
        yield
    finally:
        handle.remove()


def span_of(probe: Probe) -> str:
    """The part of the answer that holds the fact: the target, else an accepted answer in it, else all of it."""
    inside = (text for text in (probe.target, *probe.accept) if text and text in probe.answer)
    return next(inside, probe.answer)


def span_rows(prompt_format: PromptFormat, probes: Sequence[Probe]) -> list[TokenRow]:
    """Tokens of each question with its answer up to the end of the span, which alone has labels.

    Raises:
        ValueError: If a span has no token of its own.
    """
    conversations = [
        prompt_format.conversation(prompt_format.messages(probe.question), probe.answer, span_of(probe))
        for probe in probes
    ]
    rows = prompt_format.rows(conversations)
    for probe, row in zip(probes, rows, strict=True):
        if not row.answer or not row.prompt:
            raise ValueError(f"Row {probe.row} has no token for {span_of(probe)!r}, so nothing predicts it.")
    return rows


def span_batches(rows: Sequence[TokenRow], batch_size: int, device: torch.device) -> Iterator[SpanBatch]:
    """Rows in batches, in their order."""
    for start in range(0, len(rows), batch_size):
        part = rows[start : start + batch_size]
        width = max(len(row.prompt) + len(row.answer) for row in part)
        ids = torch.zeros(len(part), width, dtype=torch.long)
        mask, labels = torch.zeros_like(ids), torch.full_like(ids, IGNORE_INDEX)
        for i, row in enumerate(part):
            whole = torch.tensor([*row.prompt, *row.answer])
            ids[i, : len(whole)], mask[i, : len(whole)] = whole, 1
            labels[i, len(row.prompt) : len(whole)] = torch.tensor(row.answer)
        places, columns = (labels[:, 1:] != IGNORE_INDEX).nonzero(as_tuple=True)
        inputs = {"input_ids": ids, "attention_mask": mask, "labels": labels}
        yield SpanBatch(
            {name: value.to(device) for name, value in inputs.items()}, places.to(device), columns.to(device)
        )


def read_span(module: LitCausalLM, batch: SpanBatch) -> tuple[Predictions, BlockStates]:
    """Predictions of the span, and the output of every block, of one forward pass."""
    with reading_blocks(blocks_of(module)) as states:
        predictions = causal_lm_nll.predictions(module, batch.inputs)
    return predictions, states


def span_log_prob(predictions: Predictions) -> Tensor:
    """Mean log-probability of the tokens of each row's span, shape ``(B,)``, fp32."""
    return -(predictions.nll() / predictions.length())


def check_same_form(name: str, original: LitCausalLM, others: dict[str, LitCausalLM]) -> None:
    """Refuse models whose states can't take the place of the original's.

    Raises:
        ValueError: If they differ in the number of blocks or the width of their states.
    """
    wanted = _form(original)
    for role, other in others.items():
        if _form(other) != wanted:
            raise ValueError(
                f"{name} puts states of the {role} model into the original one, but the {role} model has "
                "{} blocks of width {}, and the original {} of width {}. ".format(*_form(other), *wanted)
                + "Give models of one architecture."
            )


class FixedDecoder:
    """The final norm and the output head of one model, for states of any block of it and of its relatives.

    Args:
        module: The model.

    Raises:
        MisconfigurationException: If the final norm or the head can't be found.
    """

    def __init__(self, module: LitCausalLM) -> None:
        model = module.model
        name, _ = decoder_layers(model)
        owner: nn.Module = model.get_submodule(name.rpartition(".")[0])
        children = dict(owner.named_children())
        known = [attribute for attribute in _NORMS if attribute in children or hasattr(owner, attribute)]
        head = output_head(model)
        self._model = type(model).__name__
        if not known or head is None:
            what = "its output head" if known else f"its final norm, which beside {name!r} is none of {_NORMS}"
            raise MisconfigurationException(
                f"A logit lens decodes states by the model's own norm and head, but of the {self._model} it can't find "
                f"{what}. Leave the lens out for this model; the depth score needs neither."
            )
        # OPT's models with the norm after the layer have None there; and smaller embeddings behind it.
        parts = [children.get(known[0]), children.get("project_out"), head]
        self._parts = [part for part in parts if part is not None]
        config = model.config.get_text_config()
        self._cap: float | None = getattr(config, "final_logit_softcapping", None)

    def __call__(self, states: Tensor) -> Tensor:
        """Logits ``(M, V)`` of states ``(M, d)``."""
        for part in self._parts:
            states = part(states)
        return states if self._cap is None else torch.tanh(states / self._cap) * self._cap

    def check(self, states: Tensor, logits: Tensor) -> None:
        """Refuse a decoder that does not give the model's own logits from the output of its last block.

        Args:
            states: Outputs of the last block, shape ``(M, d)``.
            logits: The model's logits at the same places, shape ``(M, V)``.

        Raises:
            MisconfigurationException: If it gives others.
        """
        ours, theirs = self(states).float(), logits.float()
        gap, scale = (ours - theirs).abs().max().item(), theirs.abs().max().item()
        tolerance = _TOLERANCE if logits.dtype == torch.float32 else 2.0**-6
        if not gap <= tolerance * max(scale, 1.0):
            raise MisconfigurationException(
                f"The final norm and the head of the {self._model} do not give its logits from the output of its last "
                f"block: they differ by {gap:.1e}. It does something else between them, which a logit lens does not "
                "know. Leave the lens out for this model; the depth score needs neither."
            )


@contextmanager
def _giving(block: nn.Module, output: Any) -> Iterator[None]:
    """Replace what a block computes by a given output."""
    own = vars(block).get("forward")
    block.forward = lambda *_, **__: output
    try:
        yield
    finally:
        if own is None:
            del block.forward
        else:
            block.forward = own


def _first(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


def _with_first(output: Any, state: Tensor) -> Any:
    if isinstance(output, Tensor):
        return state
    return type(output)((state, *output[1:]))


def _form(module: LitCausalLM) -> tuple[int, int]:
    return len(blocks_of(module)), int(module.model.config.get_text_config().hidden_size)
