"""What did fine-tuning do to every layer of this transformer?"""
