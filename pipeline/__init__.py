"""How a data set is made: recipe, sources, and the stages that turn DICOM into samples."""
