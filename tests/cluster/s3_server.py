"""``python -m tests.cluster.s3_server``: moto's S3 on port 5000 of this host, with one bucket."""

import boto3
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

__all__ = ["BUCKET", "PORT"]

PORT, BUCKET = 5000, "gcsr-sweeps"


def main() -> None:
    """Serve until killed."""
    server = make_server("0.0.0.0", PORT, DomainDispatcherApplication(create_backend_app), threaded=True)
    import threading

    threading.Thread(target=server.serve_forever).start()
    client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{PORT}", region_name="us-east-1")
    client.create_bucket(Bucket=BUCKET)
    print("ready", flush=True)


if __name__ == "__main__":
    main()
