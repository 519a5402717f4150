"""Campaigns: many runs, planned, estimated, run or submitted, retried, merged by groups."""
