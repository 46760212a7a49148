"""The page that teaches adding a system is run as it stands."""

import importlib.util
import re
from pathlib import Path

from mmjax import tasks
from mmjax.cli.main import main
from mmjax.core import metrics

PAGE = Path(__file__).resolve().parents[2] / "docs" / "adding_a_system.md"


def test_the_page_leads_to_a_training_run(tmp_path, monkeypatch, capsys):
    task, config = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len((task + config).splitlines()) < 80
    (tmp_path / "denoise_task.py").write_text(task)
    (tmp_path / "denoise.py").write_text(config)
    spec = importlib.util.spec_from_file_location("denoise_task", tmp_path / "denoise_task.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setitem(tasks.TASKS, "denoise", module.make)
    path = str(tmp_path / "denoise.py")
    assert main(["info", "--config", path]) == 0
    assert "16,576" in capsys.readouterr().out  # 64 * 128 + 128 + 128 * 64 + 64
    assert main(["train", "--config", path, "--workdir", str(tmp_path / "run"), "mesh.fsdp=4", "mesh.data=2", "steps=60"]) == 0
    lines = [line for line in metrics.read(tmp_path / "run") if "loss" in line]
    assert lines[-1]["hidden_mse"] < 0.7 * lines[0]["hidden_mse"]
