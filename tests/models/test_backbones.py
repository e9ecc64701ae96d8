"""Published weights whose server is slow, silent or away; output strides that a backbone cannot have."""

import http.server
import socket
import threading
import time

import huggingface_hub
import pytest

from eqssl.config import EncoderConfig
from eqssl.models.backbones import check_published
from eqssl.models.encoder import Encoder


@pytest.fixture
def hub(monkeypatch):
    """Return a function that puts another server in the place of the hub."""

    def use(address: str) -> None:
        template = huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE
        place = template.replace(huggingface_hub.constants.ENDPOINT, address)
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", place)
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *names: None)
    monkeypatch.setattr("eqssl.files.ANSWER_S", 1.5)
    check_published.cache_clear()
    yield use
    check_published.cache_clear()


def test_a_silent_server_is_refused_in_time(hub):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        hub(f"http://127.0.0.1:{silent.getsockname()[1]}")
        start = time.monotonic()
        message = (
            r"weights of resnet18 .* \(no answer in 1.5 s\); allowed: no weights .*--no-pretrained.*FOLDER.*HF_HUB_OFF"
        )
        with pytest.raises(ValueError, match=message):
            check_published("resnet18")
        assert time.monotonic() - start < 30


def test_a_slow_server_is_waited_for_and_asked_once(hub):
    asked = []

    class Slow(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            asked.append(self.path)
            time.sleep(0.3)
            self.send_error(404)

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Slow) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        hub(f"http://127.0.0.1:{server.server_port}")
        check_published("resnet18")
        check_published("resnet18")
        server.shutdown()
    assert asked == ["/timm/resnet18.a1_in1k/resolve/main/config.json"]


def test_a_copy_in_the_cache_needs_no_server(hub, monkeypatch):
    hub("http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda model, file: f"/cache/{file}")
    check_published("resnet18")


def test_a_model_that_nobody_published_is_refused(hub):
    with pytest.raises(ValueError, match=r"Invalid pretrained tag \(none\) for resnet18"):
        check_published("resnet18.none")
    with pytest.raises(ValueError, match="vit_small_patch16_18x2_224 has no published weights; allowed: no weights"):
        check_published("vit_small_patch16_18x2_224")


@pytest.mark.parametrize("options, size, allowed", [
    ({"name": "resnet18"}, 32, "2, 4, 8"),
    ({"name": "resnet18", "stem": "standard"}, 32, "8, 16, 32"),
    ({"name": "test_vit"}, 12, "1, 2, 3, 4, 6, 12"),
    ({"name": "convnext_atto"}, 64, "8, 16, 32"),
    ({"name": "resnet_tiny"}, 32, "8"),
    ({"name": "torchvision/resnet18"}, 32, "none"),
])  # fmt: skip
def test_an_impossible_output_stride_is_refused_with_the_possible_ones(options, size, allowed):
    name = options["name"]
    message = f"--encoder.output-stride is 5; allowed with --encoder.name {name} and images of {size} px: {allowed} "
    with pytest.raises(ValueError, match=message):
        Encoder(EncoderConfig(output_stride=5, **options), 3, size, (0.5,) * 3, (0.25,) * 3)


def test_a_convnext_has_the_stride_that_it_is_asked_for():
    config = EncoderConfig(name="convnext_atto", output_stride=8)
    assert Encoder(config, 3, 64, (0.5,) * 3, (0.25,) * 3).grid == (8, 8)


def test_another_fault_than_the_stride_is_named_itself():
    with pytest.raises(ValueError, match=r"^--encoder.name torchvision/resnet18 takes colour images"):
        Encoder(EncoderConfig(name="torchvision/resnet18", output_stride=8), 1, 32, (0.5,), (0.25,))
