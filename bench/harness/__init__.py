"""What the runners share: processes, clients, the machine's facts, pages and result folders."""
