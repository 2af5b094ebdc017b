def report(records):
    print(len(records))


def draw_pictures(r, p):
    pass


def write_page(r, p):
    pass
