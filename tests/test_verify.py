"""`edgeopt verify` and `edgeopt sign`: what is not as it was, or not from whom it should be, is refused and named."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import linear
import pytest

from edgeopt.__main__ import main
from edgeopt.verify import sign, verify


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """A folder with the keys `mine` and `other`, and `signers`, who are maker@example.com with the key `mine`."""
    folder = tmp_path_factory.mktemp("keys")
    for name in ("mine", "other"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    (folder / "signers").write_text(f"maker@example.com {(folder / 'mine.pub').read_text()}")
    return folder


@pytest.fixture(scope="module")
def signed(keys, tmp_path_factory):
    folder = linear.bundle(tmp_path_factory.mktemp("bundle") / "best").folder
    sign(folder, keys / "mine")
    return folder


@pytest.fixture
def bundle(signed, tmp_path):
    """The signed bundle, to change at will."""
    return Path(shutil.copytree(signed, tmp_path / "best"))


def change(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])


def refused(capsys, *arguments: str | Path) -> str:
    assert main(["verify", *map(str, arguments)]) == 4
    return capsys.readouterr().err


def test_a_sound_bundle_verifies_and_the_number_of_its_files_is_told(bundle, capsys):
    assert main(["verify", str(bundle)]) == 0
    assert "2 files" in capsys.readouterr().out


def test_a_run_is_verified_by_its_bundle(bundle):
    assert verify(bundle.parent).folder == bundle


@pytest.mark.parametrize("trust", [["--key", "mine.pub"], ["--key", "mine"], ["--signers", "signers"]])
def test_a_bundle_signed_by_whom_it_should_be_verifies(bundle, keys, trust, capsys):
    assert main(["verify", str(bundle), trust[0], str(keys / trust[1]), "--json"]) == 0
    signer = json.loads(capsys.readouterr().out)["signer"]
    assert signer["fingerprint"].startswith("SHA256:")
    assert signer["name"] == ("maker@example.com" if trust[0] == "--signers" else None)


@pytest.mark.parametrize("name", ["model.onnx", "golden.npz"])
def test_a_changed_byte_is_refused(bundle, name, capsys):
    change(bundle / name)
    assert f"{name}: the file is not what its sha256 says" in refused(capsys, bundle)


@pytest.mark.parametrize("name", ["model.onnx", "golden.npz"])
def test_a_missing_file_is_refused(bundle, name, capsys):
    (bundle / name).unlink()
    assert f"{name}: the file is missing" in refused(capsys, bundle)


@pytest.mark.parametrize("name", ["more.so", "deep/more.so", ".hidden"])
def test_an_added_file_is_refused(bundle, name, capsys):
    (bundle / name).parent.mkdir(exist_ok=True)
    (bundle / name).touch()
    assert f"{name}: the manifest does not list this file" in refused(capsys, bundle)


def test_a_link_to_a_folder_is_refused(bundle, tmp_path, capsys):
    (bundle / "more").symlink_to(tmp_path)
    assert "more: the manifest does not list this file" in refused(capsys, bundle)


@pytest.mark.parametrize("trust", [["--key", "other.pub"], ["--signers", "others"]])
def test_a_signature_by_another_key_is_refused(bundle, keys, trust, capsys):
    (keys / "others").write_text(f"maker@example.com {(keys / 'other.pub').read_text()}")
    assert "signed with the key SHA256:" in refused(capsys, bundle, trust[0], keys / trust[1])


@pytest.mark.parametrize("trust", [["--key", "mine.pub"], ["--signers", "signers"]])
def test_a_signature_that_was_taken_away_is_refused(bundle, keys, trust, capsys):
    (bundle / "edgeopt.json.sig").unlink()
    assert "the bundle is not signed" in refused(capsys, bundle, trust[0], keys / trust[1])


def test_a_manifest_changed_with_the_file_fits_its_signature_no_more(bundle, keys, capsys):
    """Whoever changes a file can change its digest in the manifest: only the signature shows it."""
    other = linear.bundle(bundle.parent / "other", wrong_by=1.0).folder
    shutil.copytree(other, bundle, dirs_exist_ok=True)
    assert main(["verify", str(bundle)]) == 0
    capsys.readouterr()
    assert "the signature does not fit" in refused(capsys, bundle, "--key", keys / "mine.pub")


def test_a_manifest_of_before_every_file_was_listed_gets_no_more_through(bundle, keys, capsys):
    """A downgrade: without the list, a file that was added would be one that nobody asked about."""
    manifest = json.loads((bundle / "edgeopt.json").read_text())
    del manifest["files"]
    (bundle / "edgeopt.json").write_text(json.dumps(manifest))
    assert verify(bundle).files == 2, "such bundles exist, and are whole"
    assert "the signature does not fit" in refused(capsys, bundle, "--key", keys / "mine.pub")
    (bundle / "more.so").touch()
    assert "more.so: the manifest does not list this file" in refused(capsys, bundle)


@pytest.mark.parametrize("schema", [0, 2])
def test_a_manifest_of_another_schema_is_refused(bundle, schema, capsys):
    text = (bundle / "edgeopt.json").read_text()
    (bundle / "edgeopt.json").write_text(text.replace('"schema": 1', f'"schema": {schema}'))
    assert main(["verify", str(bundle)]) == 2
    assert f"has schema {schema}" in capsys.readouterr().err


def test_a_signature_made_for_something_else_is_refused(bundle, keys, capsys):
    manifest = bundle / "edgeopt.json"
    (bundle / "edgeopt.json.sig").unlink()
    subprocess.run(["ssh-keygen", "-q", "-Y", "sign", "-f", keys / "mine", "-n", "git", manifest], check=True)
    assert "the signature does not fit" in refused(capsys, bundle, "--key", keys / "mine.pub")


def test_openssh_alone_can_check_a_signature(bundle, keys):
    command = ["ssh-keygen", "-Y", "verify", "-f", keys / "signers", "-I", "maker@example.com", "-n", "edgeopt-bundle"]
    with open(bundle / "edgeopt.json") as manifest:
        done = subprocess.run([*command, "-s", bundle / "edgeopt.json.sig"], stdin=manifest, capture_output=True)
    assert done.returncode == 0, done.stderr


def test_a_damaged_bundle_is_not_signed(bundle, keys, capsys):
    change(bundle / "model.onnx")
    before = (bundle / "edgeopt.json.sig").read_bytes()
    assert main(["sign", str(bundle), "--key", str(keys / "other")]) == 4
    assert (bundle / "edgeopt.json.sig").read_bytes() == before


def test_signing_again_replaces_the_signature(bundle, keys):
    assert main(["sign", str(bundle), "--key", str(keys / "other"), "--json"]) == 0
    assert verify(bundle, key=keys / "other.pub").signer is not None
    assert sorted(path.name for path in bundle.iterdir()) == [
        "edgeopt.json",
        "edgeopt.json.sig",
        "golden.npz",
        "model.onnx",
    ]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["sign", "best", "--key", "nothing"], "no such file"),
        (["sign", "best", "--key", "signers"], "the key signs nothing"),
        (["verify", "best", "--key", "signers"], "is no public key of OpenSSH"),
        (["verify", "best", "--key", "mine.pub", "--signers", "signers"], "both say whom to trust"),
        (["verify", "."], "is not a bundle"),
    ],
)
def test_what_makes_no_sense_is_told(bundle, keys, arguments, told, monkeypatch, capsys):
    for name in ("mine.pub", "signers"):
        shutil.copy(keys / name, bundle.parent / name)
    monkeypatch.chdir(bundle.parent)
    if arguments[1] == ".":
        shutil.rmtree(bundle)
    assert main(arguments) == 2
    assert told in capsys.readouterr().err


def test_without_ssh_keygen_it_is_named(bundle, keys, monkeypatch, capsys):
    monkeypatch.setenv("PATH", "/nowhere")
    assert main(["verify", str(bundle)]) == 0
    assert main(["verify", str(bundle), "--key", str(keys / "mine.pub")]) == 5
    assert "ssh-keygen" in capsys.readouterr().err
