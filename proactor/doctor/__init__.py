"""Why a run does not learn, and what to do."""
