"""A run's metrics as TensorBoard events."""

import os
import pathlib
import time


class Events:
    """Writes what `metrics.jsonl` holds for TensorBoard too (needs `tensorboardX`).

    By tensorboardX's writer of files alone: its `SummaryWriter` hands events to a thread, and `flush` does not wait for
    those that are under way.
    """

    def __init__(self, folder: pathlib.Path, step: int):
        """Begins a file of events in `folder`, for a run that stands at `step`.

        A run that was killed has events of later steps in its earlier files, and will make them again: TensorBoard is
        told to forget them.
        """
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2
        from tensorboardX.summary import scalar

        folder.mkdir(exist_ok=True)
        self._event, self._scalar = event_pb2.Event, scalar  # ty: ignore[missing-attribute]
        self._writer = EventsWriter(os.path.join(folder, "events"))
        if step:
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)  # ty: ignore[missing-attribute]
            self._write(step=step + 1, session_log=start)

    def _write(self, **content) -> None:
        self._writer.write_event(self._event(wall_time=time.time(), **content))

    def write(self, step: int, split: str, values: dict[str, float]) -> None:
        """Adds the metrics of a split at a step."""
        for name, value in values.items():
            self._write(step=step, summary=self._scalar(f"{split}/{name}", value))

    def flush(self) -> None:
        """Puts all of it into the file: at every checkpoint, so that a resumed run lacks nothing."""
        self._writer.flush()

    def close(self) -> None:
        """Closes the file."""
        self._writer.close()
