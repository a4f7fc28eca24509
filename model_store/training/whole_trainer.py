"""transformers' Trainer with a validation loss over all rows."""

from typing import Any

from transformers import Trainer


class WholeTrainer(Trainer):  # type: ignore[misc]
    """A Trainer that leaves out a last, smaller batch where it learns, but none where it validates."""

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """As Trainer's, with the last batch."""
        self.args.dataloader_drop_last = False
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.args.dataloader_drop_last = True
