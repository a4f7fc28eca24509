"""transformers' Trainer with a validation loss over all rows, and with a way back to where it ended."""

from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerState


class WholeTrainer(Trainer):  # type: ignore[misc]
    """A Trainer that leaves out a last, smaller batch where it learns, but none where it validates."""

    def load(self, checkpoint: Path) -> None:
        """Have what `train` came to when it ended with a checkpoint: its state, and the best weights."""
        self.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        best = self.state.best_model_checkpoint if self.args.load_best_model_at_end else None
        self._load_from_checkpoint(best or str(checkpoint))

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """As Trainer's, with the last batch."""
        self.args.dataloader_drop_last = False
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.args.dataloader_drop_last = True
