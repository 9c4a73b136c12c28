"""The datasets of a run: opened when their first document comes, completed together."""

from __future__ import annotations

from dataclasses import replace

from domain_pretrain.prepare.channels import Channels
from domain_pretrain.prepare.encode import Documents, Target
from domain_pretrain.prepare.errors import PrepareError
from domain_pretrain.prepare.layout import Layout
from domain_pretrain.prepare.manifest import Channel, Counts, Dataset, Manifest, Quality
from domain_pretrain.prepare.output import DatasetWriter, MegatronFormat
from domain_pretrain.prepare.quality import QualityMeter
from domain_pretrain.prepare.record import Selection
from domain_pretrain.prepare.values import MAX_CHANNELS, MAX_VALUES, DomainNames, domain_name


class _Open:
    """One dataset that is being written."""

    def __init__(self, megatron: MegatronFormat, stem: str, vocab_size: int) -> None:
        self.writer = DatasetWriter(megatron, stem)
        self.meter = QualityMeter(vocab_size)
        self.channels = Channels()
        self.counts = Counts()

    def add(self, documents: Documents) -> None:
        self.writer.add(documents.ids, documents.lengths)
        self.meter.add(documents.ids, documents.lengths, documents.digests, documents.traces)
        self.channels.add(documents.channels)
        self.counts.add(documents.counts)


class Datasets:
    """Writes documents to their datasets.

    Args:
        layout: where these are.
        megatron: their format.
        vocab_size: number of ids.
        selection: the fields that choose datasets and channels; without the first there is one
            dataset, and perhaps a held-out one.
    """

    def __init__(
        self, layout: Layout, megatron: MegatronFormat, vocab_size: int, selection: Selection
    ) -> None:
        self._layout = layout
        self._megatron = megatron
        self._vocab_size = vocab_size
        by, key = selection.by, selection.channel
        self._names = None if by is None else DomainNames(f"--by {by}", MAX_VALUES)
        self._channel_names = (
            None if key is None else DomainNames(f"--channel-key {key}", MAX_CHANNELS)
        )
        self._open: dict[Target, _Open] = {}

    def __enter__(self) -> Datasets:
        return self

    def __exit__(self, *_: object) -> None:
        for dataset in self._open.values():
            dataset.writer.close()

    def add(self, target: Target, documents: Documents) -> None:
        """Append documents.

        Raises:
            PrepareError: there are too many datasets or channels, or two would have one domain's
                name.
        """
        if target not in self._open:
            if self._names is not None:
                self._names.add(target.value)
            stem = self._layout.staged(target)
            self._open[target] = _Open(self._megatron, stem, self._vocab_size)
        if self._channel_names is not None:
            for channel in documents.channels.found:
                self._channel_names.add(channel.name)
        self._open[target].add(documents)

    def finish(self, run: Manifest) -> None:
        """Complete all datasets, and ``run`` with what they hold.

        Raises:
            PrepareError: one was held out as a whole; or nothing was, though it should be.
        """
        # Every value's dataset for training goes before its held-out one.
        targets = sorted(self._open)
        self._check_held_out(run, targets)
        named = self._names is not None
        training = []
        for target in targets:
            opened = self._open[target]
            quality = opened.meter.result()
            dataset = Dataset(
                value=target.value if named else None,
                domain=domain_name(target.value) if named else None,
                held_out=target.held_out,
                documents=opened.counts.documents,
                tokens=opened.counts.tokens,
                text_bytes=opened.counts.text_bytes,
                exact_duplicates=quality.exact_duplicates,
                unigram_entropy_nats=quality.unigram_entropy_nats,
            )
            manifest = self._manifest(run, dataset, quality, opened.channels.found)
            numbers = None if self._channel_names is None else opened.channels.of_documents()
            opened.writer.finish(manifest, numbers)
            run.datasets.append(dataset)
            if not target.held_out:
                training.append((opened, quality))
        run.quality, run.channels = _together(training)
        self._layout.finish(run)

    @staticmethod
    def _manifest(
        run: Manifest, dataset: Dataset, quality: Quality, channels: list[Channel]
    ) -> Manifest:
        """Of one dataset: what it shares with the run, and its own numbers."""
        return replace(
            run,
            lines=0,
            empty_documents=0,
            bad_lines=0,
            documents=dataset.documents,
            tokens=dataset.tokens,
            text_bytes=dataset.text_bytes,
            value=dataset.value,
            held_out=dataset.held_out,
            quality=quality,
            first_bad_lines=[],
            inputs=[],
            datasets=[],
            channels=channels,
        )

    def _check_held_out(self, run: Manifest, targets: list[Target]) -> None:
        if run.holdout is None:
            return
        if not any(target.held_out for target in targets):
            raise PrepareError(
                f"--holdout {run.holdout}: no document was held out of {run.documents:,}; hold out "
                "more, or a number of documents instead of a share"
            )
        for value, held_out in targets:
            if held_out and (value, False) not in self._open:
                of = f" of {value!r}" if value else ""
                raise PrepareError(
                    f"--holdout {run.holdout}: all documents{of} were held out, and none is left "
                    "to train on; hold out less, or a number of documents instead of a share"
                )


def _together(training: list[tuple[_Open, Quality]]) -> tuple[Quality, list[Channel]]:
    """What all that there is to train on is like, at least one dataset."""
    if len(training) == 1:
        ((opened, quality),) = training
        return quality, opened.channels.found
    quality = QualityMeter.of_all(opened.meter for opened, _ in training).result()
    channels = Channels()
    for opened, _ in training:
        channels.add(opened.channels)
    # Documents are numbered within a dataset.
    return replace(quality, first_duplicates=[]), channels.found
