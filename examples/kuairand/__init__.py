"""A ranker of KuaiRand's short videos: click -> long view -> finish (see README.md)."""
