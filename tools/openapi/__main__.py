"""`make openapi`: writes api/openapi/openapi.json."""

from api.openapi.document import FILE
from tools.openapi.document import text

if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
