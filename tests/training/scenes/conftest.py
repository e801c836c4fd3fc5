"""What tests of training on scenes share."""

import pytest
from scene_runs import train_tiny

from training.scenes.new_model import SceneRun


@pytest.fixture(scope="module")
def stage1(tmp_path_factory: pytest.TempPathFactory) -> SceneRun:
    """A tiny model after some steps of Stage I, as the checkpoint that Stage II begins with."""
    return train_tiny(tmp_path_factory.mktemp("stage1"))
