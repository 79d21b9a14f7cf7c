"""Writes a configuration of ours from that of another tool."""
