"""What a run has written for TensorBoard: in the host's folder, and in a run for each domain."""

from __future__ import annotations

from pathlib import Path

from tensorboard.summary.writer import event_file_writer

# TensorBoard reads the files of one second in the order of their names, which end in how many this
# process has written before: as text, 10 would come before 9, and points that a resumed run takes
# the place of would stay.
event_file_writer._global_uid = event_file_writer.AtomicCounter(10**6)


def points(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """``tag → (step, value)…`` of all runs below; of ``domains/a``, ``channel/loss`` is
    ``channel-loss/a``, as it is called where all is in one run."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = {}
    for run in sorted({path.parent for path in folder.rglob("events.*")}):
        events = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
        domain = str(run.relative_to(folder)).removeprefix("domains/") if run != folder else ""
        for tag in events.Tags()["scalars"]:
            name = f"{tag.replace('/', '-')}/{domain}" if domain else tag
            found[name] = [(event.step, event.value) for event in events.Scalars(tag)]
    return found
