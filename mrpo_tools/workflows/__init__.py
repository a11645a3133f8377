import logging

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # before anything imports it
