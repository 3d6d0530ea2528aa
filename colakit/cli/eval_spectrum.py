"""``colakit eval --spectrum``."""

from pathlib import Path
from typing import TYPE_CHECKING

from colakit.errors import CheckpointError
from colakit.report.figures import spectrum_figure
from colakit.report.spectrum import spectrum_notes, spectrum_table
from colakit.report.tables import print_json, print_note, print_table

if TYPE_CHECKING:
    from colakit.evaluate.foreign import ForeignModel
    from colakit.evaluate.text import Text
    from colakit.train.saved import SavedModel


def check_spectrum(opened: "SavedModel | ForeignModel") -> None:
    """Raise CheckpointError where `opened` has not the layers that are looked at."""
    from colakit.train.saved import SavedModel

    if not isinstance(opened, SavedModel):
        raise CheckpointError(f"{opened.place} is none of colakit's models, whose layers --spectrum knows.")


def show_spectrum(
    opened: "SavedModel | ForeignModel",
    text: "Text",
    max_tokens: int | None,
    batch_size: int | None,
    plot: Path | None,
    json: bool,
) -> None:
    """Measure the activations of `opened` on `text`, show them, and draw them where `plot` says."""
    from colakit.evaluate.spectrum import measure_spectrum
    from colakit.evaluate.windows import batch_of
    from colakit.train.saved import SavedModel

    assert isinstance(opened, SavedModel)  # `check_spectrum`
    windows = text.windows(opened.seq_len, None, max_tokens)
    size = batch_size or opened.fitting_batch(opened.seq_len)
    batches = (
        batch_of([windows[i] for i in range(start, min(start + size, len(windows)))], text.isolate_eot).batch
        for start in range(0, len(windows), size)
    )
    record = measure_spectrum(opened.model, batches, opened.machine, preset=opened.config.preset, step=opened.steps)
    if plot is not None:
        spectrum_figure(plot, record)
    if json:
        print_json(record.to_dict())
        return
    print_table(spectrum_table(record))
    for note in spectrum_notes(record):
        print_note(note)
