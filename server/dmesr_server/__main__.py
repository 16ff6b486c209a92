"""`python -m dmesr_server serve`: the server's commands without the SDK's command line."""

from dmesr_server.cli import app

if __name__ == "__main__":
    app()
