"""One rollout engine a file or folder; `engine.find` imports it when it is asked for."""
