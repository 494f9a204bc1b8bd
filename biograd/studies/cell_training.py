"""One training of a study, and what of it is in the folder already."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

from torch import nn

from biograd import disk, experiment, ranks, recipes
from biograd.data import ASKED
from biograd.errors import RecipeError
from biograd.progress import Key, Progress
from biograd.recipes import Table
from biograd.runs.reader import open_run
from biograd.runs.storage import RunPaths, holds_run
from biograd.studies import Place
from biograd.studies.design import Trainings, check_same, plain
from biograd.studies.grid import Cell
from biograd.studies.notes import TrainingFiles
from biograd.studies.results.comparison import Summary
from biograd.user_code import named_metrics

OWN = (*ASKED, "npz", "hdf5", "folder")
"""Sources whose content no recipe fixes."""


@dataclasses.dataclass(frozen=True)
class Training:
    """One training of a study: a cell with a seed.

    Attributes:
        found: settings that a search chose.
        path: of its run file; its summary lies beside it.
    """

    settings: Trainings
    cell: Cell
    seed: int
    place: Place
    found: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What a person calls it."""
        return f"{self.cell.name}, seed {self.seed}"

    @property
    def key(self) -> Key:
        """Its cell and its seed."""
        return self.cell.name, self.seed

    @property
    def files(self) -> TrainingFiles:
        """What the folder holds of it."""
        return TrainingFiles.of(self.place.folder, self.cell.name, self.seed)

    @property
    def path(self) -> Path:
        """Where its run file goes."""
        return self.files.run

    @property
    def note(self) -> Path:
        """Where its summary goes, when it is complete."""
        return self.files.note

    @property
    def asks(self) -> tuple[str, ...]:
        """All that is set beside the recipes, ``KEY=VALUE``."""
        return (*self.settings.set, *self.cell.assignments, *self.found)

    def request(self) -> experiment.TrainingRequest:
        """Return what is asked of it."""
        place, settings = self.place, self.settings
        model = place.model(self.cell.model)
        own = not isinstance(model, str) or recipes.is_module(model)
        return experiment.TrainingRequest(
            model=copy.deepcopy(model) if isinstance(model, nn.Module) else model,
            dataset=self.cell.dataset,
            own=place.data(self.cell.dataset),
            loss=place.code(settings.loss) if settings.loss else None,
            reset=place.code(settings.reset) if settings.reset and own else None,
            metrics={
                name: place.code(text) for name, text in named_metrics(settings.metrics).items()
            },
            allow_code=place.allow_code,
            repeatable=True,
            estimator=self.cell.estimator,
            seed=self.seed,
            out=self.path,
            common=(*self.settings.set, *self.found),
            assignments=self.cell.assignments,
            data_dir=self.place.data_dir,
            offline=self.place.offline,
            device=self.place.placement.device,
        )

    def asked(self) -> Table:
        """Return its configuration, checked against what is in the folder already.

        Raises:
            RecipeError: the request is not valid, or what is there was made with other settings.
        """
        request = self.request()
        configuration = experiment.configure(request)
        asked, known = plain(configuration), self.files.summary()
        if known is not None:
            if not self.path.exists():
                raise RecipeError(
                    f"{self.path}: is gone, its summary is there: delete {self.note.name} to train "
                    "it again"
                )
            check_same(known["configuration"], asked, self.note)
            if configuration.data.source in OWN:
                self._same_data(configuration, request.own)
        elif self._begun():
            with open_run(self.path) as run:
                check_same(run.config, asked, self.path)
        return asked

    def _same_data(self, configuration: experiment.Configuration, own: Any) -> None:
        """Refuse what was learned from own data that are others now."""
        key = (
            id(own),
            json.dumps(dataclasses.asdict(configuration.data), default=str),
            configuration.dataset,
        )
        if key not in self.place.digests:
            self.place.digests[key] = configuration.read(own).digest
        with open_run(self.path) as run:
            if run.attribute("dataset_sha256") != self.place.digests[key]:
                raise RecipeError(
                    f"{self.path}: was learned from other {configuration.dataset} data: give "
                    "another folder, or delete the file"
                )

    def known(self) -> Summary | None:
        """Return its summary; None if it has not been trained to the end."""
        found = self.files.summary()
        return None if found is None else found["summary"]

    @property
    def held_out(self) -> bool:
        """Whether it was judged on a held-out part of the training data, not on the test split."""
        found = self.files.summary()
        if found is None or found["summary"].get("test"):
            return False
        held = found["configuration"]["data"]["validation"] > 0  # all that older summaries know
        return held or found["summary"].get("evaluated_on") == "validation"

    def run(self, progress: Progress | None = None, shared: bool = False) -> Summary:
        """Return its summary: as it was written before, resumed, or new.

        Args:
            shared: other trainings run in this process, whose memory would count as well.
        """
        with ranks.together():
            asked, known, begun = json.loads(ranks.from_first(self._state))
            if known is not None:
                return dict(known)
            if begun:
                parts = self.request().parts().another()
                device = self.place.placement.device
                found = experiment.proceed(self.path, progress=progress, parts=parts, device=device)
            else:
                found = experiment.execute(self.request(), progress)
            if shared:
                found = {**found, "peak_memory_bytes": None}
            if not ranks.rank():
                disk.write_json(self.note, {"configuration": asked, "summary": found})
            ranks.after_first()
        return found

    def _state(self) -> bytes:
        """Return what is asked, what is known of the end, and whether it was begun, as JSON."""
        return json.dumps([self.asked(), self.known(), self._begun()]).encode()

    def _begun(self) -> bool:
        place = RunPaths.of(self.path)
        return place.file.exists() or holds_run(place.parts)


def train(training: Training) -> None:
    """Do one training of a study; what another process is given."""
    training.run()
