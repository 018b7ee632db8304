"""What is known of language-model architectures: tensor names, layouts, metadata, both ways."""
