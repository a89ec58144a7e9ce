"""Open-i as a twin: reports with empty sections, with 0, 1, 2 and 5 images, of all three forms of image ids."""

from twins.pictures import pixels, write_picture
from twins.tables import write_rows

REPORTS = {
    1: (
        ["CXR1_1_IM-0001-3001", "CXR1_1_IM-0001-4001"],
        "The heart is normal &amp; lungs are clear.",
        "Normal chest.",
        ["normal"],
    ),
    2: (
        ["CXR2_IM-0652-1001"],
        "",
        "Cardiomegaly, XXXX edema.",
        ["Cardiomegaly/borderline", "Pulmonary Artery/enlarged"],
    ),
    3: ([], "No images here.", "None.", ["normal"]),
    4: ([f"CXR4_IM-2050-{number}001" for number in range(1, 6)], "Left effusion.", "", ["Pleural Effusion/left"]),
    10: (["CXR10_IM-0002-1001-0001", "CXR10_IM-0002-2001"], "", "", []),
}
LATERAL = {"CXR1_1_IM-0001-4001", "CXR10_IM-0002-2001", "CXR4_IM-2050-2001"}


def write_openi(root):
    (root / "ecgen-radiology").mkdir(parents=True)
    for number, (images, findings, impression, terms) in REPORTS.items():
        (root / "ecgen-radiology" / f"{number}.xml").write_text(xml(number, images, findings, impression, terms))
        for place, image in enumerate(images):
            write_picture(root / f"{image}.png", pixels(10 * number + place))


def xml(number, images, findings, impression, terms):
    parents = "".join(
        f'<parentImage id="{image}"><figureId>F{place}</figureId><caption>Xray</caption>'
        f'<panel type="single"><url>/hadoop/{image}.jpg</url><imgModality>7</imgModality></panel></parentImage>'
        for place, image in enumerate(images, start=1)
    )
    return (
        '<?xml version="1.0" encoding="utf-8"?><eCitation><meta type="rr"/>'
        f'<uId id="CXR{number}"/><pmcId id="{number}"/>'
        "<MedlineCitation><Article><Abstract>"
        '<AbstractText Label="COMPARISON">None.</AbstractText><AbstractText Label="INDICATION">XXXX pain</AbstractText>'
        f'<AbstractText Label="FINDINGS">{findings}</AbstractText>'
        f'<AbstractText Label="IMPRESSION">{impression}</AbstractText></Abstract></Article></MedlineCitation>'
        f"<MeSH>{''.join(f'<major>{term}</major>' for term in terms)}<automatic>heart</automatic></MeSH>"
        f"{parents}</eCitation>"
    )


def write_projections(root):
    rows = [
        f"{number},{number}_{image[image.index('IM-') :]}.dcm.png,{'Lateral' if image in LATERAL else 'Frontal'}"
        for number, (images, *_) in REPORTS.items()
        for image in images
    ]
    write_rows(root / "indiana_projections.csv", "uid,filename,projection", rows)
