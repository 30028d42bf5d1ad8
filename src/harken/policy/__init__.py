"""Reward to policy: supervised fine-tuning and PPO."""
