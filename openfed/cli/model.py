"""`fx model ...`"""

from pathlib import Path

import click

FILE = click.Path(path_type=Path)


@click.group()
def command() -> None:
    """Convert and inspect model files."""


@command.command()
@click.option("-i", "--input", "source", required=True, type=FILE, help="A safetensors file.")
@click.option("-o", "--output", "target", required=True, type=FILE, help="The file to write.")
@click.option("--to", type=click.Choice(["safetensors", "torch", "npz"]), help="Else by suffix.")
def save(source: Path, target: Path, to: str | None) -> None:
    """Write a model in another format: that of the suffix, or --to."""
    from openfed.launch.export import export

    export(source, target, to)
    click.echo(f"wrote {target}")


@command.command()
@click.argument("file", type=FILE)
def inspect(file: Path) -> None:
    """List the entries of a model: name, dtype, shape; and its digest."""
    from openfed.tensors.frame import digest
    from openfed.tensors.model_file import read_model
    from openfed.tensors.record import Record, signature_of

    tensors = read_model(file)
    specs = signature_of(tensors)
    width = max((len(spec.name) for spec in specs), default=0)
    for spec in specs:
        click.echo(f"{spec.name!r:<{width + 2}}  {spec.dtype:<9} {list(spec.shape)}")
    total = sum(spec.size for spec in specs)
    click.echo(f"{len(specs)} entries, {total} bytes, digest {digest(Record(tensors))}")
