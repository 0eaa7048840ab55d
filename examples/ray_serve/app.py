"""Two replicas of a server: ``serve run app:app`` in this folder, with the edits in ``edits``."""

from cad_fast.serving.integrations.ray_serve import RayArguments, deployment

arguments = RayArguments(
    model="zoo:emoji",  # or a local diffusers folder, or a repository of the Hub
    edit_dir="edits",
    replicas=2,
    max_batch_size=8,
    steps=20,
    guidance_scale=3.0,
)

# Whatever Ray offers beside the arguments goes into options().
app = deployment(arguments).options(health_check_period_s=5).bind()
