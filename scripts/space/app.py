"""The playground as a Hugging Face Space, which tells gradio where to listen."""

from trm.playground import main

main([])
