"""Does a concept come back after it was erased: by amplifying, by other prompts, by noise of real pictures."""

from .audit import audit
from .result import AuditResult, Probe

__all__ = ["AuditResult", "Probe", "audit"]
