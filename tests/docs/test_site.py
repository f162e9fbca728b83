"""The guides and the API reference are built without a warning."""

import re
import subprocess
import sys

import pytest
from doc_pages import ROOT

from vt_flax.models import list_models


@pytest.mark.slow
def test_the_site(tmp_path):
    pytest.importorskip("sphinx", reason="pip install -e '.[docs]'")
    subprocess.run(
        [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-c", "docs"]
        + [str(ROOT), str(tmp_path)],
        check=True,
        cwd=ROOT,
    )
    text = (tmp_path / "docs" / "api.html").read_text()
    documented = {*re.findall(r'id="vt_flax\.([\w.]+)"', text)}
    assert {
        "models.create_model",
        "training.api.train",
        "training.api.evaluate",
        "inference.predictor.load",
        "nn.tokenizers.StaticTokenizer",
        "nn.projector.Projector",
        "models.vt_resnet.VTResNet",
    } <= documented
    assert len(documented) > len(list_models())
