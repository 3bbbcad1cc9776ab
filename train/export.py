"""`unmask export`: a checkpoint as an ONNX file; and, where data are given, what that and 8-bit weights cost.

Also `python -m train.export`.
"""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from unmask import console
from unmask.console import AsJson, civil, print_json, say
from unmask.errors import UsageError

__all__ = ["app", "export", "main"]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
@civil
def export(
    model: Annotated[str, typer.Argument(metavar="CKPT", help="A checkpoint, or the name of one that comes along.")],
    out: Annotated[Path, typer.Option("--out", help="The ONNX file.")],
    int8: Annotated[
        bool, typer.Option("--int8", help="Also write OUT-int8.onnx, in 8 bits; needs --data to find its ranges.")
    ] = False,
    data: Annotated[
        list[str] | None,
        typer.Option("--data", help="What the model was trained on: AUC of all forms on people left for the test."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a model as ONNX: pixels in, calibrated probabilities out, for ONNX Runtime on any device.

    Exit status: 0, or 2 for wrong usage.
    """
    if int8 and not data:
        raise UsageError("--int8 needs --data, faces by which the ranges of 8 bits are found and the loss is measured")
    from unmask.onnx_export import needed, write_onnx
    from unmask.presets import resolve

    needed("onnx", "onnxscript", *(["onnxruntime"] if data else []))
    loaded, description = resolve(model)
    write_onnx(out, loaded, description)
    say(f"The model lies in {out} ({out.stat().st_size / 1e6:.1f} MB)")
    if not data:
        return
    from train.forms import Forms

    forms = Forms(loaded, description, data)
    paths = [out]
    if int8:
        paths.append(out.with_name(f"{out.stem}-int8.onnx"))
        forms.write_int8(out, paths[1])
    document = forms.measured(paths)
    out.with_suffix(".json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    if as_json:
        print_json(document)
    else:
        _show(document)


def _show(document: dict[str, Any]) -> None:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("Form", "MB", "ms a sample", "AUC", "AUC lost", "largest difference of probability"):
        table.add_column(heading, justify="left" if heading == "Form" else "right")
    for row in document["forms"]:
        numbers = (row["auc"], row["auc_lost"], row["largest_difference"])
        table.add_row(
            row["name"], f"{row['bytes'] / 1e6:.1f}", f"{row['ms_per_sample']:.2f}", *(f"{v:.5f}" for v in numbers)
        )
    console.out.print(table)
    for sentence in document["caveats"]:
        say(sentence)
    say(f"{document['samples']:,} {document['level']}s of {document['videos']:,} videos left for the test")


def main(arguments: list[str] | None = None) -> None:
    """Entry point of `python -m train.export`; `unmask export` gives its own arguments."""
    console.run(app, "unmask export", arguments)


if __name__ == "__main__":
    main()
