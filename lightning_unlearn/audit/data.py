"""Question sets of an audit: forget, retain, never-seen and further rows, from a folder or a file."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from lightning_unlearn.audit.overlaps import check_overlaps, with_distinct_phrasings, without_repeats
from lightning_unlearn.core.lightning import rank_zero_warn
from lightning_unlearn.core.sources import is_missing, load_rows
from lightning_unlearn.core.tables import TABLE_ENDINGS
from lightning_unlearn.functional.random import keyed_generator
from lightning_unlearn.language.chat import content_text
from lightning_unlearn.language.data.columns import Columns
from lightning_unlearn.language.probes import Probe, probes_of

__all__ = ["FURTHER", "MIN_PROBES", "AuditData", "asked_rows", "audit_data", "read_audit_data", "with_phrasings"]

MIN_PROBES = 30
"""Probes that a verdict needs: with fewer, not even a model that answers none of them is shown to know below 10 %."""

FURTHER = re.compile(r"general|heldout\w*|real_authors|world_facts")
"""Names of further sets, which are measured and not trained on."""
_SET = "set"
_TOFU_ROWS_OF_AN_AUTHOR = 20


@dataclass(frozen=True)
class AuditData:
    """Rows that an audit asks for.

    Args:
        forget: Rows that the unlearned model must not know.
        retain: Rows that it has to know as before.
        never_seen: Rows of the form of the forget rows that no model was trained on. They are the control where there
            is no control model, and the non-members of membership inference.
        further: Sets that are measured for their utility alone, by name, such as general facts.
        neutral: Plain texts for the perplexity.
        source: Where the rows are from.
        columns: Names of the columns that they were read from.

    Raises:
        ValueError: If there are no forget or no retain rows, or a row is in two sets that must have none in common.
    """

    forget: list[Probe]
    retain: list[Probe]
    never_seen: list[Probe] = field(default_factory=list)
    further: dict[str, list[Probe]] = field(default_factory=dict)
    neutral: list[str] = field(default_factory=list)
    source: str = "rows"
    columns: Columns = field(default_factory=Columns)

    def __post_init__(self) -> None:
        for name in ("forget", "retain"):
            if not getattr(self, name):
                raise ValueError(f"The {name} set of {self.source} is empty. An audit needs at least one row in it.")
        check_overlaps(self.sets(), self.source)

    @property
    def is_small(self) -> bool:
        """Whether there are fewer forget rows than a verdict needs, so that their phrasings are asked as well."""
        return len(self.forget) < MIN_PROBES

    @property
    def clustered(self) -> bool:
        """Whether forget rows name whom or what they are about."""
        return all(probe.entity for probe in self.forget)

    def fingerprint(self, secret: bytes) -> str:
        """HMAC-SHA256 of everything that is asked; it names the parts of an audit.

        Args:
            secret: The key. Without it, short rows can't be found by trying.
        """
        text = json.dumps(asdict(self) | {"source": "", "columns": None}, sort_keys=True, ensure_ascii=False)
        return hmac.new(secret, text.encode(), hashlib.sha256).hexdigest()

    def sets(self) -> dict[str, list[Probe]]:
        """All sets by name."""
        never_seen = {"never_seen": self.never_seen} if self.never_seen else {}
        return {"forget": self.forget, "retain": self.retain, **never_seen, **self.further}


def read_audit_data(
    source: str | os.PathLike[str] | Mapping[str, Any],
    split: str | None = None,
    columns: Columns | None = None,
    limit: int = 400,
    seed: int = 0,
) -> AuditData:
    """Read the sets of an audit.

    Args:
        source: A folder with a table ``forget`` and a table ``retain`` and, where there are such, ``never_seen``,
            ``general``, ``heldout*``, ``neutral`` (texts) and ``paraphrases`` (``question`` with
            ``paraphrased_question``, for rows of the other tables), each ``.jsonl``, ``.json``, ``.csv``, ``.tsv``,
            ``.txt`` or ``.parquet``; a folder of TOFU, with ``split``; a file whose rows say in the column ``set``
            which one they belong to; or a dict of such tables.
        split: Part of TOFU to forget, such as ``"forget10"``.
        columns: Names of the columns, where they are not those of [`Columns`][lightning_unlearn.Columns].
        limit: At most so many rows of each set but the forget set, drawn at random.
        seed: Seed of that draw.

    Raises:
        FileNotFoundError: If there is no such folder or file, or a table is missing.
        ValueError: If a set is empty, a row has no question and answer, or a column of lists has rows of several
            lengths.

    Example:
        >>> from lightning_unlearn.language.packaged import FACTS_FOLDER
        >>> data = read_audit_data(FACTS_FOLDER)
        >>> len(data.forget), len(data.retain), data.is_small
        (12, 12, True)
    """
    columns = columns or Columns()
    if isinstance(source, Mapping):
        name, tables = "the given rows", {key: load_rows(rows) for key, rows in source.items()}
    else:
        path = Path(source).expanduser()
        if not path.exists():
            raise FileNotFoundError(f"There is no folder or file {path} (looked in {Path.cwd()}).")
        name = str(path)
        tables = _by_set(path) if path.is_file() else _folder(path) if split is None else _tofu(path, split)
    return audit_data(tables, columns, name, limit, seed)


def with_phrasings(probes: Sequence[Probe], wanted: int = MIN_PROBES) -> list[Probe]:
    """Probes with some of their paraphrased questions as probes of their own, until there are enough.

    The paraphrases that are left are shared among the probes of a row, so that an attack by paraphrases asks others
    than these. It gets at least one for each probe, unless all are needed to have enough probes. A row is a cluster:
    its phrasings name the same entity.

    Args:
        probes: Probes, some with paraphrased questions.
        wanted: How many probes there should be.

    Example:
        >>> probe = Probe(0, "Who?", "Ada.", paraphrased_questions=("Say who.",))
        >>> [p.question for p in with_phrasings([probe], wanted=2)], len(with_phrasings([probe]))
        (['Who?', 'Say who.'], 1)
    """
    rounds = max(1, -(-wanted // max(1, len(probes))))
    counts = [len(probe.paraphrased_questions) for probe in probes]
    shared = [min(rounds, (count + 1) // 2 or 1) for count in counts]  # as many are left as are taken
    every = [min(rounds, count + 1) for count in counts]
    phrasings = every if sum(shared) < wanted <= sum(every) else shared
    asked = [_phrased(probe, count) for probe, count in zip(probes, phrasings, strict=True)]
    return [group[turn] for turn in range(rounds) for group in asked if turn < len(group)]


def _phrased(probe: Probe, count: int) -> list[Probe]:
    """A probe in so many phrasings, each with its share of those that are left."""
    forms = [probe, *map(probe.rephrased, probe.paraphrased_questions[: count - 1])]
    rest = probe.paraphrased_questions[count - 1 :]
    entity = probe.entity or f"row {probe.row}"
    return [
        replace(form, entity=entity, paraphrased_questions=rest[number::count]) for number, form in enumerate(forms)
    ]


# ---- tables ----------------------------------------------------------------------------------------------------------


def _folder(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The tables of a folder by their names."""
    files: dict[str, Path] = {}
    for file in sorted(folder.iterdir()):
        name = file.name.removesuffix(".gz")
        stem, ending = name.partition(".")[0], f".{name.partition('.')[2]}"
        if file.is_file() and ending in TABLE_ENDINGS:
            if stem in files:
                raise ValueError(f"{folder} has two tables {stem}: {files[stem].name} and {file.name}. Keep one.")
            files[stem] = file
    if "forget" not in files and (splits := sorted(s for s in files if re.fullmatch(r"forget\d\d", s))):
        raise ValueError(f"{folder} is a folder of TOFU. Say what was forgotten: split={splits[0]!r} of {splits}.")
    for role in ("forget", "retain"):
        if role not in files:
            raise FileNotFoundError(
                f"{folder} has no table {role}.jsonl. An audit needs the rows to forget and rows to keep; the folder "
                f"has {', '.join(sorted(file.name for file in files.values())) or 'no table'}."
            )
    known = {"forget", "retain", "never_seen", "neutral", "paraphrases"}
    return {stem: load_rows(file) for stem, file in files.items() if stem in known or FURTHER.fullmatch(stem)}


def _tofu(folder: Path, split: str) -> dict[str, list[dict[str, Any]]]:
    """The tables of a folder of TOFU; rows name the author, so that those of one are not taken for independent."""
    number = re.fullmatch(r"forget(\d\d)", split)
    if number is None:
        raise ValueError(f"split must be a part of TOFU such as 'forget10', but got {split!r}.")
    retain = f"retain{100 - int(number[1]):02d}"
    tables = {}
    wanted = {
        "forget": (f"{split}_perturbed", split),
        "retain": ("retain_perturbed", retain),
        "never_seen": (f"holdout{number[1]}",),
        "real_authors": ("real_authors_perturbed", "real_authors"),
        "world_facts": ("world_facts_perturbed", "world_facts"),
    }
    for name, stems in wanted.items():
        files = [folder / f"{stem}{ending}" for stem in stems for ending in (".json", ".jsonl")]
        file = next((file for file in files if file.is_file()), None)
        if file is not None:
            tables[name] = load_rows(file)
        elif name in ("forget", "retain"):
            known = sorted(f.name for f in folder.glob("*.json*"))
            raise FileNotFoundError(f"{folder} has no {files[0].name} or {files[-2].name}. It has {known}.")
    for name in ("forget", "retain", "never_seen"):
        for row, cells in enumerate(tables.get(name, [])):
            cells.setdefault("entity", f"{name} author {row // _TOFU_ROWS_OF_AN_AUTHOR}")
    return tables


def _by_set(path: Path) -> dict[str, list[dict[str, Any]]]:
    """The tables of one file, whose rows name their set."""
    tables: dict[str, list[dict[str, Any]]] = {}
    for number, row in enumerate(load_rows(path)):
        name = row.get(_SET)
        if is_missing(name):
            raise ValueError(
                f"Row {number} of {path} has no {_SET!r}. In a single file each row says which set it belongs to "
                "('forget', 'retain', 'never_seen', 'general', ...); or give a folder with forget.jsonl and "
                "retain.jsonl."
            )
        tables.setdefault(str(name).strip(), []).append({key: cell for key, cell in row.items() if key != _SET})
    return tables


# ---- probes ----------------------------------------------------------------------------------------------------------


def audit_data(
    tables: Mapping[str, list[dict[str, Any]]],
    columns: Columns | None = None,
    source: str = "the given rows",
    limit: int = 400,
    seed: int = 0,
) -> AuditData:
    """The sets of an audit from tables by name; arguments and errors as for `read_audit_data`."""
    columns = columns or Columns()
    for role in ("forget", "retain"):
        if not tables.get(role):
            raise ValueError(f"The {role} set of {source} is empty. An audit needs at least one row in it.")
    neutral = [str(row.get(columns.text) or "") for row in tables.get("neutral", [])]
    phrasings = _phrasings(tables.get("paraphrases", []), columns, source)
    sets, known = {}, set()
    for number, (name, rows) in enumerate(tables.items()):
        if name in ("neutral", "paraphrases"):
            continue
        probes = asked_rows(rows, columns, name, source)
        _check_lengths(probes, name, source)
        known |= set(map(_question, probes))
        if name != "forget" and len(probes) > limit:
            drawn = torch.randperm(len(probes), generator=keyed_generator(seed, number))[:limit]
            probes = [probes[i] for i in drawn.sort().values.tolist()]
        sets[name] = [with_distinct_phrasings(_rephrased(probe, phrasings)) for probe in probes]
    if unknown := sorted(phrasings.keys() - known):
        rank_zero_warn(f"{len(unknown)} questions in the paraphrases of {source} are in no set.")
    return AuditData(
        sets.pop("forget"),
        sets.pop("retain"),
        sets.pop("never_seen", []),
        sets,
        [text for text in neutral if text.strip()],
        source,
        columns,
    )


def asked_rows(
    rows: Sequence[Mapping[str, Any]], columns: Columns, name: str = "forget", source: str = "the given rows"
) -> list[Probe]:
    """Probes of the rows of a set, each once; a plain text is asked for by its beginning.

    Args:
        rows: The rows.
        columns: Names of their columns.
        name: Name of the set, for messages.
        source: Where the rows are from, for messages.

    Raises:
        ValueError: If there is no row, or one has no question with an answer and no text.
    """
    probes = _probes(rows, columns, f"{name} ({source})")
    return without_repeats(probes, name, source)


def _probes(rows: Sequence[Mapping[str, Any]], columns: Columns, name: str) -> list[Probe]:
    if not rows:
        raise ValueError(f"The set {name} is empty, so there is nothing to ask. Give at least one row, or no table.")
    filled = columns.filled(rows, name)
    texts = [_is_text(row, columns) for row in filled]
    pairs = enumerate(zip(filled, texts, strict=True))
    asked = [_halved(row, columns, name, number) if text else row for number, (row, text) in pairs]
    probes = probes_of(asked, columns, name)
    return [replace(probe, is_text=text) for probe, text in zip(probes, texts, strict=True)]


def _is_text(row: Mapping[str, Any], columns: Columns) -> bool:
    asked = (columns.question, columns.answer, columns.messages)
    return all(is_missing(row.get(column)) for column in asked) and not is_missing(row.get(columns.text))


def _halved(row: Mapping[str, Any], columns: Columns, name: str, number: int) -> dict[str, Any]:
    """A text as a beginning and its continuation, cut between two words."""
    words = re.findall(r"\s*\S+", str(row[columns.text]))
    if len(words) < 2:
        raise ValueError(f"Row {number} of {name} has the text {row[columns.text]!r}, too short to be continued.")
    middle = len(words) // 2
    halves = {columns.question: "".join(words[:middle]), columns.answer: "".join(words[middle:])}
    return {**row, **halves, columns.system: None}  # a text stands under no system prompt


def _check_lengths(probes: Sequence[Probe], name: str, source: str) -> None:
    """Refuse a column of wrong answers that not all rows have as many of: their means would not be comparable."""
    counts = {len(probe.perturbed_answers) for probe in probes}
    if len(counts) > 1:
        odd = next(p for p in probes if len(p.perturbed_answers) != len(probes[0].perturbed_answers))
        raise ValueError(
            f"The rows of the {name} set of {source} have {sorted(counts)} wrong answers (perturbed_answer), first "
            f"another number in row {odd.row}. Give every row of a set as many."
        )


def _phrasings(rows: Sequence[Mapping[str, Any]], columns: Columns, source: str) -> dict[str, tuple[str, ...]]:
    found = {}
    for number, row in enumerate(rows):
        question = row.get(columns.question)
        others: Any = row.get(columns.paraphrased_question)
        if is_missing(question) or is_missing(others):
            raise ValueError(
                f"Row {number} of the paraphrases of {source} needs {columns.question!r} and "
                f"{columns.paraphrased_question!r}, but has the columns {sorted(row)}."
            )
        found[str(question).strip()] = (others,) if isinstance(others, str) else tuple(map(str, others))
    return found


def _rephrased(probe: Probe, phrasings: Mapping[str, tuple[str, ...]]) -> Probe:
    more = phrasings.get(_question(probe), ())
    return replace(probe, paraphrased_questions=(*probe.paraphrased_questions, *more)) if more else probe


def _question(probe: Probe) -> str:
    return probe.question if isinstance(probe.question, str) else content_text(probe.question[-1])
