"""Draw a table of prompts, each under its edits, into a folder; what is there already is not drawn again.

With Ray Data the pictures are drawn by workers of a cluster, or of this machine; with ``--engine local`` by this
process. The table is a CSV file with the columns ``prompt``, ``edit``, ``strength`` and ``seed``; all but the first may
be empty.
"""

import argparse
import csv
from pathlib import Path

from cad_fast.extras import require
from cad_fast.integrations.picture_worker import PictureRun, PictureWorker, remaining

# What Ray counts for an actor. Tasks that read and divide the table need a whole CPU beside them.
CPUS_OF_A_WORKER = 0.5


def main() -> None:
    """Draw what is left of the table, and write ``index.csv``, which says where the picture of each row is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path)
    parser.add_argument("-o", "--output", required=True)
    parser.add_argument("--model", default="zoo:emoji")
    parser.add_argument("--edit-dir")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance-scale", type=float, default=3.0)
    parser.add_argument("--batch-size", type=int, default=8, help="pictures drawn at once")
    parser.add_argument("--engine", choices=("ray", "local"), default="ray")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--gpus", type=float, default=0, help="of each worker")
    arguments = parser.parse_args()
    run = PictureRun(
        arguments.model,
        str(Path(arguments.output).absolute()),
        None if arguments.edit_dir is None else str(Path(arguments.edit_dir).absolute()),
        {"num_inference_steps": arguments.steps, "guidance_scale": arguments.guidance_scale},
    ).begin()
    with arguments.table.open(newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    left = remaining(run, table)
    print(f"{len(table)} rows, {len(left)} pictures to draw", flush=True)
    device = "cuda" if arguments.gpus else None
    if left and arguments.engine == "local":
        PictureWorker(run, arguments.batch_size, device).draw(run.row(row) for row in left)
    elif left:
        by_ray(run, left, arguments, device)
    worker = PictureWorker(run)
    columns = {name: [row[name] for row in table] for name in table[0]} if table else {}
    placed = worker(columns)  # everything is there by now
    with (Path(run.output_dir) / "index.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([name for name in placed if name != "drawn"])
        writer.writerows(zip(*(placed[name] for name in placed if name != "drawn"), strict=True))


def by_ray(run: PictureRun, left: list[dict[str, str]], arguments: argparse.Namespace, device: str | None) -> None:
    """Have Ray Data's actors draw the rows. Each loads the model once; one that dies is replaced by Ray.

    Raises:
        ValueError: the cluster has no CPU left for reading beside so many actors, which would wait for ever.
    """
    data, ray = require("ray.data", "ray-data"), require("ray", "ray-data")
    ray.init(ignore_reinit_error=True)
    cpus = ray.cluster_resources().get("CPU", 0)
    if CPUS_OF_A_WORKER * arguments.workers + 1 > cpus:
        most = int((cpus - 1) / CPUS_OF_A_WORKER)
        raise ValueError(f"--workers is {arguments.workers}, and the cluster has {cpus:g} CPUs: at most {most}")
    dataset = data.from_items(left).repartition(4 * arguments.workers)
    dataset.map_batches(
        PictureWorker,
        fn_constructor_args=(run, arguments.batch_size, device),
        batch_size=4 * arguments.batch_size,
        compute=data.ActorPoolStrategy(size=arguments.workers),
        num_cpus=CPUS_OF_A_WORKER,
        num_gpus=arguments.gpus,
    ).materialize()


if __name__ == "__main__":
    main()
