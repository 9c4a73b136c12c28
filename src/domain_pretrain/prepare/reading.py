"""What has been read so far: counts per input, bad lines, and whether they are too many."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from itertools import accumulate

from domain_pretrain.prepare.encode import Encoded
from domain_pretrain.prepare.errors import BadLine, PrepareError
from domain_pretrain.prepare.manifest import InputFile, Manifest

BAD_LINES_KEPT = 20
"""Bad lines that are named in the manifest; all are counted."""

BAD_LINES_TOLD = 3
"""Bad lines that the refusal of an input tells."""


class Reading:
    """Keeps the books of a run in its manifest, in the order of the inputs.

    Args:
        manifest: of the run, with its inputs.
        max_bad: share of bad lines up to which an input is used.
        strict: the first bad line is an error.
        progress: told the bytes of the inputs that have been read, and the manifest.
        bad_line: told every bad line.
    """

    def __init__(
        self,
        manifest: Manifest,
        *,
        max_bad: float,
        strict: bool,
        progress: Callable[[int, Manifest], None],
        bad_line: Callable[[BadLine], None],
    ) -> None:
        self._manifest = manifest
        self._max_bad = max_bad
        self._strict = strict
        self._progress = progress
        self._bad_line = bad_line
        self._offsets = list(accumulate((source.bytes for source in manifest.inputs), initial=0))
        self._complete = 0  # inputs that have been read
        self._first_bad: defaultdict[str, list[str]] = defaultdict(list)

    def take(self, encoded: Encoded) -> None:
        """Count what a chunk gave.

        Raises:
            PrepareError: an input that is complete now has too many bad lines; or ``strict``.
        """
        self._complete_inputs(encoded.source)
        for bad in encoded.bad:
            if self._strict:
                raise PrepareError(f"{bad} (without --strict this line would be left out)")
            if len(self._manifest.first_bad_lines) < BAD_LINES_KEPT:
                self._manifest.first_bad_lines.append(str(bad))
            if len(self._first_bad[bad.path]) < BAD_LINES_TOLD:
                self._first_bad[bad.path].append(str(bad))
            self._bad_line(bad)
        source = self._manifest.inputs[encoded.source]
        source.add(encoded.counts)
        self._manifest.add(encoded.counts)
        for target, documents in encoded.documents.items():
            source.add(documents.counts)
            if not target.held_out:
                self._manifest.add(documents.counts)
        self.tell(encoded.source, encoded.position)

    def tell(self, source: int, position: int) -> None:
        """Report that the input ``source`` has been read up to ``position``."""
        self._progress(self._offsets[source] + position, self._manifest)

    def finish(self) -> None:
        """All inputs have been read.

        Raises:
            PrepareError: one has too many bad lines, or there is no document at all.
        """
        self._complete_inputs(len(self._manifest.inputs))
        if not any(source.documents for source in self._manifest.inputs):
            raise PrepareError(_why_nothing(self._manifest))

    def _complete_inputs(self, count: int) -> None:
        for source in self._manifest.inputs[self._complete : count]:
            self._check_share(source)
        self._complete = count

    def _check_share(self, source: InputFile) -> None:
        """Each input by itself: one file in the wrong encoding must not hide among a thousand."""
        if source.bad_lines <= self._max_bad * source.lines:
            return
        share = source.bad_lines / source.lines
        raise PrepareError(
            f"{source.path}: {source.bad_lines:,} of {source.lines:,} lines are bad "
            f"({100 * share:.3g}%, and --max-bad is {100 * self._max_bad:.3g}%), so nothing was "
            "written. Mend the file, name its encoding with --encoding, or allow more with "
            "--max-bad. The first of them:"
            + "".join(f"\n  {line}" for line in self._first_bad[source.path])
        )


def _why_nothing(manifest: Manifest) -> str:
    message = (
        f"no document in {len(manifest.inputs)} input files: "
        f"{manifest.bad_lines} bad lines, {manifest.empty_documents} empty documents"
    )
    if manifest.first_bad_lines:
        message += f"; the first bad line is {manifest.first_bad_lines[0]}"
    return message
