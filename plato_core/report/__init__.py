"""A sweep's progress, leaderboard and last words: pure functions of its events, and where they are shown."""
