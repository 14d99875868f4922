"""Objectives, which say how model outputs are judged; one file each."""
