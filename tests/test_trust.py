"""Harmful manifests, results and prompts, put through every command as a user would."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from crafted import write_pickled
from jobs_on_disk import edits_of, job, results, write_config, write_manifest, write_pictures

from diffedit_batch import cli

CANARY = "wJalrXUtnFEMI"

COMMANDS = """
import json, sys
if sys.argv[1] == "after":
    import ray.data
from pathlib import Path
from diffedit_batch import cli
from diffedit_batch.report.contact_sheet import write_contact_sheet

codes = {}
for name, arguments in json.loads(sys.argv[2]).items():
    print(f"[{name}]", file=sys.stderr)
    try:
        if name == "sheet":
            write_contact_sheet(arguments[0], Path("."), Path(arguments[1]))
        else:
            codes[name] = cli.main(arguments)
    except Exception as error:
        print(error, file=sys.stderr)
        codes[name] = type(error).__name__
print(json.dumps(codes))
print(sys.argv[1] == "after" or "ray.data" not in sys.modules)
"""


def write_job(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    return write_config(job(folder, Path("demo")), folder)


@pytest.mark.parametrize("before", ["plain", "after"])
def test_pickled_column_never_executes(tmp_path: Path, before: str) -> None:
    """Control: `test_the_crafted_column_would_run_where_nothing_checks_it`."""
    marker = tmp_path / "marker"
    plain = pa.Table.from_pylist(edits_of(["a.png"]))
    commands: dict[str, list[str]] = {}
    for column in ("note", "source_prompt"):
        folder = tmp_path / column
        config = write_job(folder)
        write_pickled(folder / "manifest.parquet", plain, column, marker)
        for command in ("plan", "run", "prepare"):
            commands[f"{command} {column}"] = [command, str(config)]
    folder = tmp_path / "prompts"
    names = write_pictures(folder, 1)
    by_concept = [{**row, "target_concept": "dog"} for row in edits_of(names)]
    for row in by_concept:
        del row["target_prompt"]
    config = write_job(folder)
    write_manifest(folder, by_concept)
    texts = pa.table({"concept": ["dog"], "prompts": [["a dog"]]})
    write_pickled(folder / "output" / "prompts.parquet", texts, "prompts", marker)
    commands["plan prompts"] = ["plan", str(config)]
    folder = tmp_path / "results"
    write_pickled(folder / "output/results/part-000001-000001.parquet", plain, "status", marker)
    commands["status"] = ["status", str(folder / "output")]
    commands["sheet"] = [str(folder / "output"), str(tmp_path / "sheet.png")]

    done = subprocess.run(
        [sys.executable, "-c", COMMANDS, before, json.dumps(commands)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    codes, is_clean = done.stdout.splitlines()[-2:]
    others = {"status": 5, "sheet": "StorageError"}
    assert json.loads(codes) == {name: others.get(name, 2) for name in commands}
    assert is_clean == "True", "the job has imported ray.data"
    named = ["note"] * 3 + ["source_prompt"] * 3 + ["prompts", "status", "status"]
    for column, text in zip(named, done.stderr.split("[")[1:], strict=True):
        assert f"column '{column}': extension types are refused" in text
    assert not marker.exists()
    assert not (tmp_path / "note" / "output").exists()


def test_secrets_of_a_manifest_appear_nowhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", f"{CANARY}-env")
    rows = edits_of(
        [
            f"s3://AKIA0123456789ABCDEF:{CANARY}/x@bucket/a.png",
            f"https://user:{CANARY}@host.example/a.png",
            f"https://127.0.0.1/a.png?X-Amz-Signature={CANARY}",
            f"ftp://host.example/a.png?token={CANARY}",
        ]
    )
    for row in rows:
        del row["id"], row["note"]
    rows[3] |= {"image": "a.png", "mask": rows[3]["image"]}
    write_pictures(tmp_path, 1)
    (tmp_path / "000.png").rename(tmp_path / "a.png")
    write_manifest(tmp_path, rows)
    config = write_job(tmp_path)
    settings = ["output.max_failed_fraction=1.0", "input.allowed_schemes=[https]"]
    options = [f"--set={setting}" for setting in settings]
    for command in ("plan", "run"):
        assert cli.main([command, str(config), *options]) == 0
    assert cli.main(["status", str(tmp_path / "output"), "--json"]) == 0
    told = "".join(capsys.readouterr())
    found = {row["error_type"]: row for row in results(tmp_path)}
    assert found.keys() == {"CredentialsInUri", "AddressRefused", "SchemeNotAllowed"}
    assert found["AddressRefused"]["image"] == "https://127.0.0.1/a.png"
    assert CANARY not in told
    assert CANARY not in str(results(tmp_path))
    for path in (tmp_path / "output").rglob("*"):
        if path.is_file():
            assert CANARY.encode() not in path.read_bytes(), path
            if path.suffix == ".parquet":  # compressed
                assert CANARY not in str(pq.ParquetFile(path).read().to_pydict())


@pytest.mark.parametrize(
    "setting",
    [
        f"output.uri=s3://key:{CANARY}@bucket/output",
        f"input.manifest=https://host/m.parquet?X-Amz-Signature={CANARY}",
        f"input.image_root=https://user:{CANARY}@host/images",
        f"output.uri=nonsense://host/x?token={CANARY}",
        f"output.uri=s3://bucket/{CANARY}@x?sig=1",
    ],
)
def test_secrets_in_a_config_are_refused_and_not_repeated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], setting: str
) -> None:
    write_manifest(tmp_path, edits_of(["a.png"]))
    assert cli.main(["plan", str(write_job(tmp_path)), "--set", setting]) == 2
    message = "".join(capsys.readouterr())
    assert f"{setting.partition('=')[0]}: holds a password or signature" in message
    assert CANARY not in message
