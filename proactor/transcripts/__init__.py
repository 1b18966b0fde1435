"""Transcripts in other people's forms, read into ours."""
