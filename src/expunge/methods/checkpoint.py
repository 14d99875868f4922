"""A model that was unlearned elsewhere: its weights come from a file or a folder, and are attacked and judged.

Nothing is trained. A file must hold weights of the spec's own architecture: as safetensors, or a state dict that
`torch.save` wrote. Only tensors are read from it. A folder is one that Hugging Face's `save_pretrained` wrote; its
configuration must be that of the spec's model, and its tokenizer, if it holds one, that of the data. A folder with an
adapter, which PEFT's `save_pretrained` wrote, is put on the model that the method starts from.

Cost: none here; what it cost elsewhere is not known.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from torch import nn

from expunge.base.reading import require_file
from expunge.core import checkpoint
from expunge.core.hf_folder import ADAPTER_CONFIG, CONFIG, load_folder
from expunge.core.job import Job
from expunge.core.method import Method
from expunge.core.peft_folder import with_adapter
from expunge.core.problem import Problem
from expunge.core.tokens import require_same_tokenizer

WHERE = "path"


@dataclass(frozen=True)
class Checkpoint(Method):
    """Weights from a file instead of an unlearning method."""

    paths: ClassVar[tuple[str, ...]] = ("path",)
    effort: ClassVar[str] = "unknown"
    priced: ClassVar[bool] = False
    repeatable: ClassVar[bool] = False

    path: str
    """The file, safetensors or `torch.save` of a state dict, or the folder; a relative path starts at the spec's."""

    def expected_gradients(self, retain: int, forget: int) -> float:
        """None: nothing is trained."""
        return 0

    def check(self, problem: Problem) -> None:
        """Refuse a folder whose tokenizer is not that of the data."""
        if Path(self.path).is_dir():
            require_same_tokenizer(problem.data.tokenizer, Path(self.path), WHERE)

    def check_model(self, model: nn.Module) -> None:
        """Refuse a file that cannot be read, and weights or a configuration of another model."""
        if not Path(self.path).is_dir():
            require_file(Path(self.path), where=WHERE)
        self._load(copy.deepcopy(model))

    def apply(self, student: nn.Module, job: Job) -> nn.Module:
        """Load the weights into the copy of the model.

        Raises:
            SpecError: The file is missing, is truncated, or holds more than tensors or weights of another architecture.
        """
        return self._load(student)

    def _load(self, module: nn.Module) -> nn.Module:
        path = Path(self.path)
        if (path / ADAPTER_CONFIG).is_file() and not (path / CONFIG).is_file():
            return with_adapter(module, self.path, WHERE)
        return (load_folder if path.is_dir() else checkpoint.load)(module, path, WHERE)
