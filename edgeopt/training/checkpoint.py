"""The state of a training between epochs, and the file that it goes on from after the process was killed.

It knows nothing of losses or data.
"""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FILE = "training.pt"
FORMAT = 1  # of the file: older ones are not gone on from
_DAMAGE = (OSError, RuntimeError, EOFError, ValueError, LookupError, TypeError, zipfile.BadZipFile, pickle.PickleError)


@dataclass(frozen=True)
class Epoch:
    """One epoch's mean training loss, and loss and score of the averaged weights on the held-out samples."""

    number: int
    loss: float
    held_out_loss: float
    score: float


@dataclass
class State:
    """All that changes from epoch to epoch, but for the student and its optimizer."""

    averaged: dict[str, Any]
    best: dict[str, Any]
    best_loss: float
    best_epoch: int = 0
    steps: int = 0
    epochs: list[Epoch] = field(default_factory=list)

    @staticmethod
    def start(student: Any, loss: float) -> State:
        """Before the first epoch: the best so far is the student as it came, with this held-out loss."""
        return State(copy_of(student.state_dict()), copy_of(student.state_dict()), loss)

    def average(self, student: Any, decay: float) -> None:
        """Averaged weights, batch norm's statistics too. The decay grows from 0.1: at first there is little to keep."""
        import torch

        self.steps += 1
        share = 1 - min(decay, (1 + self.steps) / (10 + self.steps)) if decay else 1.0
        with torch.no_grad():
            own = student.state_dict()
            floats = [name for name, value in own.items() if value.is_floating_point()]
            torch._foreach_lerp_([self.averaged[name] for name in floats], [own[name] for name in floats], share)
            for name in own.keys() - set(floats):
                self.averaged[name].copy_(own[name])

    def add(self, epoch: Epoch) -> None:
        self.epochs.append(epoch)
        if epoch.held_out_loss < self.best_loss:
            self.best_loss, self.best_epoch, self.best = epoch.held_out_loss, epoch.number, copy_of(self.averaged)

    def exhausted(self, patience: int) -> bool:
        return bool(patience) and len(self.epochs) - self.best_epoch >= patience

    def told(self, metric: str) -> str:
        if not self.epochs:
            return ""
        score = self.epochs[-1].score
        return f", held-out {metric} " + (f"{score:.1f} dB" if metric == "sqnr" else f"{score * 100:.2f} %")


class Checkpoint:
    """One file with the state after the last epoch, replaced in one rename: tensors and numbers, no objects.

    `same` is whatever must be the same for a training to be gone on with.
    """

    def __init__(self, folder: Path, same: object) -> None:
        import torch

        self._path = folder / FILE
        self._same = repr([FORMAT, same, torch.__version__, torch.get_num_threads()])

    def read(self, student: Any, optimizer: Any, state: State) -> State:
        """Put the stored state into student and optimizer. Without one, or with one that does not fit: `state`."""
        import torch

        try:
            stored = torch.load(self._path, weights_only=True, map_location="cpu")
            if stored["same"] != self._same:
                return state
            shapes = {name: value.shape for name, value in student.state_dict().items()}
            if shapes != {name: value.shape for name, value in stored["student"].items()}:
                return state
        except FileNotFoundError:
            return state
        except _DAMAGE:
            return state  # or written by another version: start anew
        device = next(iter(student.state_dict().values())).device
        student.load_state_dict(stored["student"])
        optimizer.load_state_dict(stored["optimizer"])
        return State(
            {name: value.to(device) for name, value in stored["averaged"].items()},
            {name: value.to(device) for name, value in stored["best"].items()},
            stored["best_loss"],
            stored["best_epoch"],
            stored["steps"],
            [Epoch(*numbers) for numbers in stored["epochs"]],
        )

    def write(self, student: Any, optimizer: Any, state: State) -> None:
        import torch

        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._path.with_suffix(f".{os.getpid()}")
        with open(temporary, "wb") as file:
            torch.save(
                {
                    "same": self._same,
                    "student": student.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "averaged": state.averaged,
                    "best": state.best,
                    "best_loss": state.best_loss,
                    "best_epoch": state.best_epoch,
                    "steps": state.steps,
                    "epochs": [[e.number, e.loss, e.held_out_loss, e.score] for e in state.epochs],
                },
                file,
            )
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self._path)

    def remove(self) -> None:
        self._path.unlink(missing_ok=True)


def copy_of(state: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value.detach().clone() for name, value in state.items()}
