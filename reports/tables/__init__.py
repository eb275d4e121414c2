"""The papers' tables beside our own numbers: run folders -> small records -> tables and pages."""
