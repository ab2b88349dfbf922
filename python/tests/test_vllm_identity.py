"""What the connector takes for one model, and what it stays off for."""

from __future__ import annotations

import json
import os
import struct
import tempfile
import unittest
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from undercroft.vllm import digests, identity, obstacles, versions
from undercroft.vllm.adapters import Adapters
from undercroft.vllm.items import are_named_by_content
from undercroft.vllm.settings import Settings, checked

SHIM = versions.TABLE[0, 32]


def safetensors(path: Path, tensors: dict[str, bytes]) -> None:
    header: dict[str, Any] = {}
    body = b""
    for name, data in tensors.items():
        ends = [len(body), len(body) + len(data)]
        header[name] = {"dtype": "U8", "shape": [len(data)], "data_offsets": ends}
        body += data
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


class FullAttentionSpec(SimpleNamespace):
    """By its name as the engine's."""


class SlidingWindowSpec(SimpleNamespace):
    """By its name as the engine's."""


class MambaSpec(SimpleNamespace):
    """By its name as the engine's."""


def groups(*specs: Any) -> Any:
    made = [SimpleNamespace(kv_cache_spec=spec, layer_names=["l"]) for spec in specs]
    return SimpleNamespace(kv_cache_groups=made)


def engine(model: str = "/nowhere", **changes: Any) -> Any:
    config = {"hidden_size": 8, "num_hidden_layers": 2, "_name_or_path": model}
    hf = SimpleNamespace(to_dict=lambda: dict(config), num_hidden_layers=2)
    parts: dict[str, Any] = {
        "model_config": SimpleNamespace(
            model=model,
            hf_config=hf,
            hf_text_config=hf,
            dtype="torch.bfloat16",
            quantization=None,
            revision=None,
            seed=0,
            max_model_len=128,
            get_total_num_kv_heads=lambda: 3,
        ),
        "load_config": SimpleNamespace(load_format="auto", download_dir=None),
        "cache_config": SimpleNamespace(cache_dtype="auto", prefix_caching_hash_algo="sha256"),
        "parallel_config": SimpleNamespace(world_size=1, pipeline_parallel_size=1),
    }
    for name, value in changes.items():
        part, field = name.split("__")
        setattr(parts[part], field, value)
    return SimpleNamespace(**parts)


class Digests(unittest.TestCase):
    def setUp(self) -> None:
        self._kept = tempfile.TemporaryDirectory()
        self.folder = Path(self._kept.name)
        self.addCleanup(self._kept.cleanup)

    def model(self, name: str, weights: bytes, **changes: Any) -> bytes:
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        safetensors(folder / "model.safetensors", {"a": weights, "b": b"2" * 4096})
        return identity.model_digest(engine(str(folder), **changes))

    def test_where_a_model_lies_says_nothing_what_it_is_does(self) -> None:
        same = self.model("one", b"1" * 4096)
        self.assertEqual(same, self.model("two", b"1" * 4096))
        self.assertNotEqual(same, self.model("three", b"3" * 4096))

    def test_a_fine_tune_of_the_same_shapes_and_names_is_another_model(self) -> None:
        tuned = bytearray(b"1" * 4096)
        tuned[2048] ^= 1
        self.assertNotEqual(self.model("one", b"1" * 4096), self.model("two", bytes(tuned)))

    def test_no_tensor_of_many_is_passed_over(self) -> None:
        size = digests.SMALL_BYTES + 1

        def digest(name: str, changed: int | None) -> bytes:
            path = self.folder / name / "model.safetensors"
            path.parent.mkdir()
            tensors = {str(n): bytes([n == changed]) * size for n in range(300)}
            safetensors(path, tensors)
            return digests.files_digest([str(path)])

        plain = digest("plain", None)
        for changed in (0, 1, 150, 299):
            self.assertNotEqual(plain, digest(f"changed{changed}", changed))

    def test_an_edit_between_the_samples_is_seen_where_all_is_read(self) -> None:
        found: dict[bool, list[bytes]] = {True: [], False: []}
        for name, at in (("plain", 0), ("edited", 501_234)):
            tensor = bytearray(1_000_000)
            tensor[at] = 1 if at else 0
            path = self.folder / name / "model.safetensors"
            path.parent.mkdir()
            safetensors(path, {"a": bytes(tensor)})
            for samples in found:
                found[samples].append(digests.files_digest([str(path)], samples))
        self.assertNotEqual(*found[False])
        self.assertEqual(*found[True], "samples are what they say: no more")

    def test_a_config_that_has_no_text_is_refused(self) -> None:
        with self.assertRaises(digests.DigestError):
            digests.config_digest({"hook": object()})
        one = digests.config_digest({"inner": {"_name_or_path": "a", "x": {2, 1}}})
        self.assertEqual(one, digests.config_digest({"inner": {"_name_or_path": "b", "x": {1, 2}}}))

    def test_a_format_names_the_files_it_reads(self) -> None:
        folder = self.folder / "both"
        folder.mkdir()
        safetensors(folder / "model.safetensors", {"a": b"1"})
        (folder / "model.bin").write_bytes(b"2" * 100)
        plain = identity.model_digest(engine(str(folder)))
        self.assertNotEqual(
            plain, identity.model_digest(engine(str(folder), load_config__load_format="pt"))
        )

    def test_compute_dtype_and_quantization_are_part_of_it(self) -> None:
        plain = self.model("one", b"1" * 64)
        for field, value in (("dtype", "torch.float16"), ("quantization", "q")):
            change = {f"model_config__{field}": value}
            self.assertNotEqual(plain, self.model("one", b"1" * 64, **change))

    def test_dummy_weights_are_of_their_seed(self) -> None:
        one = identity.model_digest(engine(load_config__load_format="dummy"))
        other = engine(load_config__load_format="dummy", model_config__seed=1)
        self.assertNotEqual(one, identity.model_digest(other))

    def test_weights_that_cannot_be_read_have_no_digest_but_a_given_one(self) -> None:
        with self.assertRaises(digests.DigestError):
            identity.model_digest(engine(load_config__load_format="tensorizer"))
        with self.assertRaises(digests.DigestError):
            identity.model_digest(engine(str(self.folder)))
        given = identity.model_digest(engine(load_config__load_format="tensorizer"), "ab" * 32)
        self.assertEqual(len(given), 32)

    def test_files_without_a_header_are_told_apart_by_samples(self) -> None:
        found = []
        for name, at in (("x", 0), ("y", 900_000)):
            data = bytearray(1_000_000)
            data[at] = 1
            path = self.folder / name / "w.bin"
            path.parent.mkdir()
            path.write_bytes(data)
            found.append(digests.files_digest([str(path)]))
        self.assertNotEqual(found[0], found[1])

    def test_an_adapter_is_its_files_and_one_that_changes_is_refused(self) -> None:
        for name in ("one", "two"):
            folder = self.folder / name
            folder.mkdir()
            (folder / "adapter_config.json").write_text('{"r": 8}')
            safetensors(folder / "adapter_model.safetensors", {"a": name.encode() * 100})
        adapters = Adapters()
        # Who asks first does not wait for its files.
        self.assertIsNone(adapters.salt(str(self.folder / "one")))
        self.assertIsNone(adapters.salt(str(self.folder / "two")))
        self.assertTrue(adapters.wait(10.0))
        one = adapters.salt(str(self.folder / "one"))
        self.assertIsNotNone(one)
        self.assertNotIn(adapters.salt(str(self.folder / "two")), (one, None))
        self.assertEqual(one, adapters.salt(str(self.folder / "one")))
        safetensors(self.folder / "one" / "adapter_model.safetensors", {"a": b"new" * 999})
        self.assertIsNone(adapters.salt(str(self.folder / "one")))

    def test_an_adapter_that_cannot_be_read_is_tried_again(self) -> None:
        folder = self.folder / "late"
        adapters = Adapters()
        self.assertIsNone(adapters.salt(str(folder)))
        folder.mkdir()
        self.assertIsNone(adapters.salt(str(folder)))
        self.assertTrue(adapters.wait(10.0))
        self.assertIsNone(adapters.salt(str(folder)))
        self.assertTrue(adapters.wait(10.0))
        (folder / "adapter_config.json").write_text('{"r": 8}')
        safetensors(folder / "adapter_model.safetensors", {"a": b"a" * 100})
        self.assertIsNone(adapters.salt(str(folder)))
        self.assertTrue(adapters.wait(10.0))
        self.assertIsNotNone(adapters.salt(str(folder)))


class Families(unittest.TestCase):
    def family(self, layout: str = "X", **changes: Any) -> dict[str, Any]:
        config = groups(FullAttentionSpec(block_size=32))
        return identity.family(engine(**changes), config, bytes(32), [layout], (0, 32))

    def test_what_makes_hashes_or_bytes_differ_is_part_of_it(self) -> None:
        plain = self.family()
        self.assertEqual(plain, self.family())
        for other in (
            self.family(layout="Y"),
            self.family(cache_config__prefix_caching_hash_algo="sha256_cbor"),
            self.family(cache_config__cache_dtype="fp8"),
        ):
            self.assertNotEqual(plain, other)

    def test_texts_fit_and_long_ones_stay_apart(self) -> None:
        one, other = self.family("x" * 600 + "1"), self.family("x" * 600 + "2")
        self.assertNotEqual(one["layout"], other["layout"])
        self.assertLessEqual(len(one["layout"].encode()), identity.TEXT_BYTES)


class Obstacles(unittest.TestCase):
    def why(self, config: Any = None, shim: versions.Shim = SHIM, **changes: Any) -> str | None:
        config = config or groups(FullAttentionSpec(block_size=32))
        return obstacles.obstacle(engine(**changes), config, shim)

    def test_the_plain_case_has_none(self) -> None:
        self.assertIsNone(self.why())
        two = groups(FullAttentionSpec(block_size=32), SlidingWindowSpec(block_size=32))
        self.assertIsNone(self.why(two))

    def test_each_of_these_is_one(self) -> None:
        two = groups(FullAttentionSpec(block_size=32), SlidingWindowSpec(block_size=32))
        sizes = groups(FullAttentionSpec(block_size=32), SlidingWindowSpec(block_size=64))
        found = {
            "prefix_caching_hash_algo is xxhash": self.why(
                cache_config__prefix_caching_hash_algo="xxhash"
            ),
            "decode_context_parallel_size is 2": self.why(
                parallel_config__decode_context_parallel_size=2
            ),
            "prefix caching is off": self.why(cache_config__enable_prefix_caching=False),
            "calculate_kv_scales": self.why(cache_config__calculate_kv_scales=True),
            "kv_cache_dtype nvfp4": self.why(cache_config__cache_dtype="nvfp4"),
            "launched from outside": self.why(
                parallel_config__distributed_executor_backend="external_launcher"
            ),
            "is a MambaSpec": self.why(groups(MambaSpec(block_size=32))),
            "different block sizes [32, 64]": self.why(sizes),
            "cannot be told of a failed load": self.why(two, versions.TABLE[0, 29]),
            "enable_sleep_mode": self.why(model_config__enable_sleep_mode=True),
            "no KV cache": self.why(groups()),
        }
        for part, why in found.items():
            self.assertIn(part, why or "nothing")

    def test_a_drafter_with_kv_of_its_own_is_one_and_ngrams_are_none(self) -> None:
        config = engine()
        config.speculative_config = SimpleNamespace(method="eagle")
        plain = groups(FullAttentionSpec(block_size=32))
        self.assertIn("eagle", obstacles.obstacle(config, plain, SHIM) or "")
        config.speculative_config.method = "ngram"
        self.assertIsNone(obstacles.obstacle(config, plain, SHIM))


    def test_weights_that_change_at_run_time_are_one(self) -> None:
        config = engine()
        config.weight_transfer_config = SimpleNamespace()
        plain = groups(FullAttentionSpec(block_size=32))
        self.assertIn("weight_transfer", obstacles.obstacle(config, plain, SHIM) or "")


class Items(unittest.TestCase):
    def test_pictures_are_named_by_their_content_or_not_cached(self) -> None:
        def usable(*identifiers: str) -> bool:
            features = [SimpleNamespace(identifier=one) for one in identifiers]
            return are_named_by_content(SimpleNamespace(mm_features=features))

        digest = "0123456789abcdef" * 4
        self.assertTrue(usable() and usable(digest, digest * 2, f"my:lora:{digest}"))
        for name in ("img-0", "renderer0-mm-1-image-0", digest[1:], digest.upper(), ""):
            self.assertFalse(usable(digest, name), name)
        self.assertTrue(are_named_by_content(SimpleNamespace()))


class Stages(unittest.TestCase):
    def test_how_layers_are_cut_into_stages_is_part_of_the_family(self) -> None:
        config = groups(FullAttentionSpec(block_size=32))

        def layout(cut: str | None) -> str:
            change = {} if cut is None else {"VLLM_PP_LAYER_PARTITION": cut}
            with mock.patch.dict(os.environ, change):
                piped = engine(parallel_config__pipeline_parallel_size=3)
                return identity.family(piped, config, bytes(32), [], (0, 32))["layout"]

        self.assertEqual(len({layout(None), layout("8,12,12"), layout("10,12,10")}), 3)


class Versions(unittest.TestCase):
    def test_minors_are_known_and_others_are_not_guessed_at(self) -> None:
        self.assertEqual(versions.shim("0.32.0"), versions.TABLE[0, 32])
        self.assertEqual(versions.shim("0.31.2.post1+cpu"), versions.TABLE[0, 31])
        self.assertIsNone(versions.shim("0.28.0"))
        self.assertIsNone(versions.shim("1.0.0"))
        self.assertIsNone(versions.shim("dev"))
        self.assertGreaterEqual(len(versions.TABLE), 4)


class Extra(unittest.TestCase):
    def test_the_defaults_are_what_nothing_gives(self) -> None:
        self.assertEqual(checked({}), Settings())
        self.assertEqual(checked(None), Settings())

    def test_values_are_taken(self) -> None:
        given = checked({"socket": "/run/u.sock", "min_tokens": 64, "hold_ms": 5, "store": False})
        self.assertEqual((given.min_tokens, given.hold_ms, given.store), (64, 5.0, False))

    def test_what_is_wrong_is_named_with_what_is_allowed(self) -> None:
        for raw, part in (
            ({"sokcet": "x"}, "socket"),
            ({"load": "never"}, "async, layers, off"),
            ({"min_tokens": 1.5}, "a whole number"),
            ({"min_tokens": -1}, "0..="),
            ({"threads": True}, "a whole number"),
            ({"store": 1}, "true or false"),
            ({"model_digest": "ab"}, "64 hexadecimal digits"),
            ({"socket": ""}, "not empty"),
            ({"weights": "none"}, "samples, whole"),
        ):
            with self.assertRaises(ValueError) as raised:
                checked(raw)
            self.assertIn(part, str(raised.exception))


class Environment(unittest.TestCase):
    def test_the_seed_of_hashes_is_part_of_the_family(self) -> None:
        config = groups(FullAttentionSpec(block_size=32))
        kept = os.environ.pop("PYTHONHASHSEED", None)
        try:
            plain = identity.family(engine(), config, bytes(32), [], (0, 32))
            os.environ["PYTHONHASHSEED"] = "5"
            seeded = identity.family(engine(), config, bytes(32), [], (0, 32))
        finally:
            os.environ.pop("PYTHONHASHSEED", None)
            if kept is not None:
                os.environ["PYTHONHASHSEED"] = kept
        self.assertNotEqual(plain["layout"], seeded["layout"])


if __name__ == "__main__":
    unittest.main()
